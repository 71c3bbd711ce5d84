"""Workers of several processes serve what workers of one do, and end when one of them does."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest

from deploy.local.cluster import LocalCluster
from tandemserve import Delta

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]
AssertEmpty = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
NUM_OUTPUT, SEED = 24, 23
NUM_LONG_OUTPUT, MAX_ROUNDS = 64, 8
LENGTHS = (1, 15, 16, 33, 64, 97)
SHARED = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "timeout_s": 240.0}
TWO_RANKS, ONE_RANK = (
    {"tensor_parallel_size": "2", "kv_slices": "2"},
    {"kv_slices": "2"},
)


def prompts() -> list[Prompt]:
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    return [tuple(rng.choices(range(3, 300), k=n)) for n in LENGTHS]


async def test_two_ranks_serve_the_models_own_tokens_also_of_kv_that_was_swapped(
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    # So few blocks that answers lose their place: KV of both ranks moves to host memory and back.
    few = {"max_num_batched_tokens": "32", "num_blocks": "14", "preemption": "swap"}
    async with (
        start_cluster(
            model_folders["qwen2"],
            num_prefill=0,
            num_decode=0,
            num_mixed=1,
            router={"policy": "fcfs"},
            decode=TWO_RANKS | few,
        ) as cluster,
        cluster.client() as client,
    ):
        wanted = prompts()
        num_preemptions = 0
        # Of answers that grow so much, some that run at once meet before they end.
        long = SHARED | {"max_tokens": NUM_LONG_OUTPUT}
        for _ in range(MAX_ROUNDS):
            calls = [client.generate(p, temperature=0.0, **long) for p in wanted]  # type: ignore[arg-type]
            answers = await asyncio.gather(*calls)
            assert [a.token_ids for a in answers] == greedy("qwen2", wanted, NUM_LONG_OUTPUT)
            num_preemptions += sum(a.timings.num_preemptions for a in answers)
            if num_preemptions:
                break
        assert num_preemptions > 0
        await assert_empty(cluster)


@pytest.mark.parametrize(
    ("prefill", "decode"), [(TWO_RANKS, ONE_RANK), (ONE_RANK, TWO_RANKS)], ids=["2to1", "1to2"]
)
async def test_kv_goes_between_workers_of_different_numbers_of_ranks(
    prefill: dict[str, str],
    decode: dict[str, str],
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    async with (
        start_cluster(
            model_folders["qwen2"], num_prefill=1, num_decode=1, prefill=prefill, decode=decode
        ) as cluster,
        cluster.client() as client,
    ):
        wanted = prompts()
        calls = [client.generate(p, temperature=0.0, **SHARED) for p in wanted]  # type: ignore[arg-type]
        answers = await asyncio.gather(*calls)
        assert [a.token_ids for a in answers] == greedy("qwen2", wanted, NUM_OUTPUT)
        assert {a.timings.transport for a in answers} == {"shared_memory"}
        await assert_empty(cluster)


async def test_when_a_rank_is_killed_its_answers_go_on_elsewhere_also_where_ranks_add_up_parts(
    start_cluster: StartCluster, greedy: Greedy, model_folders: dict[str, Path]
) -> None:
    settings = TWO_RANKS | {"max_num_batched_tokens": "32", "tensor_parallel_reduce": "sum"}
    async with (
        start_cluster(
            model_folders["qwen2"], num_prefill=0, num_decode=0, num_mixed=2, decode=settings
        ) as cluster,
        cluster.client() as client,
    ):
        wanted = prompts()
        first = cluster.process("mixed-0")
        (rank,) = psutil.Process(first.pid).children()
        has_begun = asyncio.Event()

        async def answer(prompt: Prompt) -> list[int]:
            token_ids: list[int] = []
            options = SHARED | {"max_tokens": 200}
            async with client.stream(prompt, temperature=0.0, **options) as stream:  # type: ignore[arg-type]
                async for event in stream:
                    if isinstance(event, Delta):
                        token_ids += event.token_ids
                        has_begun.set()
            return token_ids

        answers = [asyncio.ensure_future(answer(prompt)) for prompt in wanted]
        await asyncio.wait_for(has_begun.wait(), PATIENCE_S)
        rank.kill()
        told = [tuple(token_ids) for token_ids in await asyncio.gather(*answers)]
        assert told == greedy("qwen2", wanted, 200)
        assert await first.wait_ended(PATIENCE_S)
        assert "rank 1 of this worker was ended by SIGKILL" in str(first.ending())
        assert "-sum2-" in first.log_path.read_text("utf-8")
        first.restart()
        await cluster.wait_ready("mixed-0")
