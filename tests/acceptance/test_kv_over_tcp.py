"""Workers that know only TCP, NIXL or gloo: the same tokens whenever KV leaves, nothing lost, no
shared memory."""

import asyncio
import importlib.util
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from tandemserve import AsyncClient, Completion

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]

NUM_OUTPUT = 24
LENGTHS = (1, 16, 17, 64, 130)
# KV leaves after every pass, or at the end; where nothing is set, as the rule says.
OVERLAPS = {"tcp": "chunk", "nixl": "auto", "gloo": "whole"}


@pytest.fixture(scope="module", params=["tcp", "nixl", "gloo"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "nixl" and importlib.util.find_spec("nixl_cu13") is None:
        pytest.skip("the extra `nixl` is not installed")
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path], transport: str
) -> AsyncIterator[LocalCluster]:
    # Every block carries a checksum: what arrives is what was sent.
    only = {"transports": transport, "kv_checksum_fraction": "1.0"}
    async with start_cluster(
        model_folders["llama"],
        prefill=only | {"kv_overlap": OVERLAPS[transport]},
        decode=only | {"num_blocks": "32"},
    ) as running:
        yield running


def prompts(seed: int) -> list[Prompt]:
    print(f"prompts: seed {seed}")
    rng = random.Random(seed)
    return [tuple(rng.choices(range(5, 200), k=length)) for length in LENGTHS for _ in range(4)]


async def all_at_once(client: AsyncClient, asked: Sequence[Prompt]) -> list[Completion]:
    calls = [
        client.generate(
            prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True, timeout_s=180.0
        )
        for prompt in asked
    ]
    return await asyncio.gather(*calls)


async def test_tokens_over_a_network_and_in_each_overlap_are_those_of_generate(
    cluster: LocalCluster,
    transport: str,
    greedy: Greedy,
    assert_empty: Callable[..., Awaitable[float]],
) -> None:
    asked = prompts(seed=31)
    async with cluster.client() as client:
        answers = await all_at_once(client, asked)
    assert [answer.token_ids for answer in answers] == greedy("llama", asked, NUM_OUTPUT)
    assert {answer.timings.transport for answer in answers} == {transport}
    assert len({answer.timings.decode_worker for answer in answers}) == 2
    await assert_empty(cluster)


async def test_answers_that_are_given_up_leave_nothing_behind(
    cluster: LocalCluster, assert_empty: Callable[..., Awaitable[float]]
) -> None:
    asked = prompts(seed=32)
    async with cluster.client() as client:
        calls = [
            asyncio.ensure_future(client.generate(prompt, max_tokens=200, timeout_s=180.0))
            for prompt in asked
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=0.3)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await assert_empty(cluster)
