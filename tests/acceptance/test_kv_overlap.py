"""Tokens are the same whenever KV leaves: after every pass, at the end, or as the rule says."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from scheduling.push_pacing import KvOverlap

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

NUM_OUTPUT = 12
# Passes hold 32 tokens.
LENGTHS = (20, 64, 130, 300)
# What one worker has cached would not travel for the next.
UNCACHED = {"prefix_caching": "false"}


async def test_tokens_are_those_of_generate_in_every_overlap(
    start_cluster: Callable[..., AbstractAsyncContextManager[LocalCluster]],
    extra_worker: Callable[..., AbstractAsyncContextManager[ChildProcess]],
    model_folders: dict[str, Path],
    greedy: Callable[[str, Sequence[tuple[int, ...]], int], list[tuple[int, ...]]],
    until: Callable[..., Awaitable[float]],
    assert_empty: Callable[..., Awaitable[float]],
) -> None:
    seed = 41
    rng = random.Random(seed)
    prompts = [tuple(rng.choices(range(5, 200), k=length)) for length in LENGTHS for _ in range(2)]
    expected = greedy("llama", prompts, NUM_OUTPUT)
    worker_by_overlap = {KvOverlap.AUTO: "prefill-0"}
    async with (
        start_cluster(
            model_folders["llama"],
            num_decode=1,
            prefill=UNCACHED,
            decode=UNCACHED | {"kv_checksum_fraction": "1.0"},
        ) as cluster,
        AsyncExitStack() as others,
        cluster.client() as client,
    ):
        for overlap in (KvOverlap.CHUNK, KvOverlap.WHOLE):
            name = worker_by_overlap[overlap] = f"prefill-{overlap}"
            settings = UNCACHED | {"max_num_batched_tokens": "32", "num_blocks": "512"}
            await others.enter_async_context(
                extra_worker(
                    cluster,
                    "prefill_worker",
                    model_folders["llama"],
                    name,
                    kv_overlap=overlap.value,
                    **settings,
                )
            )

        async def are_all_ready() -> bool:
            views = await client.admin.workers()
            return {view.worker_id for view in views if view.state == "ready"} >= {
                *worker_by_overlap.values()
            }

        await until(are_all_ready)
        for name in worker_by_overlap.values():
            for other in set(worker_by_overlap.values()) - {name}:
                await client.admin.cordon(other)
            answers = await asyncio.gather(
                *(
                    client.generate(prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True)
                    for prompt in prompts
                )
            )
            assert [answer.token_ids for answer in answers] == expected
            assert {answer.timings.prefill_worker for answer in answers} == {name}
            for other in set(worker_by_overlap.values()) - {name}:
                await client.admin.uncordon(other)
        await assert_empty(cluster)
