"""KV over the network between workers that divide the heads among several processes."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]
AssertEmpty = Callable[..., Awaitable[float]]

NUM_OUTPUT, SEED = 12, 31
LENGTHS = (1, 16, 33, 97)


@pytest.mark.parametrize(("prefill_ranks", "decode_ranks"), [("1", "2"), ("2", "2")])
async def test_each_rank_receives_its_heads_over_tcp(
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
    prefill_ranks: str,
    decode_ranks: str,
) -> None:
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    prompts = [tuple(rng.choices(range(3, 300), k=n)) for n in LENGTHS]
    shared = {"kv_slices": "2", "transports": "tcp", "kv_checksum_fraction": "1"}
    async with (
        start_cluster(
            model_folders["qwen2"],
            num_prefill=1,
            num_decode=1,
            prefill=shared | {"tensor_parallel_size": prefill_ranks},
            decode=shared | {"tensor_parallel_size": decode_ranks},
        ) as cluster,
        cluster.client() as client,
    ):
        calls = [
            client.generate(
                prompt, temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True, timeout_s=240.0
            )
            for prompt in prompts
        ]
        answers = await asyncio.gather(*calls)
        assert [answer.token_ids for answer in answers] == greedy("qwen2", prompts, NUM_OUTPUT)
        assert {answer.timings.prefill_worker for answer in answers} == {"prefill-0"}
        assert {answer.timings.decode_worker for answer in answers} == {"decode-0"}
        await assert_empty(cluster)
