"""Pools that hold two or three requests, sixty of them at once: all end, right and empty."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from tandemserve import AsyncClient, CanNeverFit, Completion

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]

NUM_REQUESTS = 300
NUM_AT_ONCE = 60
_POOL = {"num_blocks": "10", "block_size": "4"}
MAX_OUTPUT = 16
# Tokens in a prompt; with the longest answer, 10 blocks of 4.
LENGTHS = (1, 5, 9, 16, 20, 24)


@dataclass(frozen=True)
class Pressure:
    """A policy, and whether KV may move to host memory."""

    policy: str
    decode: dict[str, str]

    def __str__(self) -> str:
        return f"{self.policy}-{'-'.join(self.decode.values())}"


PRESSURES = [
    Pressure(policy, decode)
    for policy in ("default", "fcfs")
    for decode in ({"preemption": "swap"}, {"preemption": "recompute"})
] + [Pressure("fcfs", {"preemption": "cheaper"})]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PRESSURES, ids=str)
async def pressed(
    request: pytest.FixtureRequest, start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[tuple[Pressure, LocalCluster]]:
    pressure: Pressure = request.param
    async with start_cluster(
        model_folders["llama"],
        router={"policy": pressure.policy},
        prefill=_POOL,
        decode=_POOL | pressure.decode,
    ) as running:
        yield pressure, running


async def test_everybody_is_answered_however_full_all_pools_are(
    pressed: tuple[Pressure, LocalCluster], greedy: Greedy, assert_empty: AssertEmpty
) -> None:
    pressure, cluster = pressed
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    # The same prompts each time: their right answers cost more than the test.
    prompt_rng = random.Random(1)
    prompts = [tuple(prompt_rng.choices(range(3, 320), k=n)) for n in LENGTHS for _ in range(4)]
    expected = greedy("llama", prompts, MAX_OUTPUT)
    rng = random.Random(seed)
    jobs = iter(
        [
            (rng.randrange(len(prompts)), rng.choice((4, 16, 16)), rng.choice((1, 1, 2)))
            for _ in range(NUM_REQUESTS)
        ]
    )
    answers: list[Completion] = []

    async def caller(client: AsyncClient) -> None:
        for number, max_tokens, num_choices in jobs:
            answer = await client.generate(
                prompts[number],
                max_tokens=max_tokens,
                n=num_choices,
                temperature=0.0,
                ignore_eos=True,
                timeout_s=240.0,
            )
            for choice in answer.choices:
                assert choice.token_ids == expected[number][:max_tokens]
            answers.append(answer)

    async with cluster.client() as client:
        before = await client.admin.status()
        async with asyncio.TaskGroup() as callers:
            for _ in range(NUM_AT_ONCE):
                callers.create_task(caller(client))
        await assert_empty(cluster)
        status = await client.admin.status()
        views = await client.admin.workers()
    assert len(answers) == status.num_finished - before.num_finished == NUM_REQUESTS
    timings = [choice.timings for answer in answers for choice in answer.choices]
    num_swaps = sum(each.num_swaps for each in timings)
    num_preemptions = sum(each.num_preemptions for each in timings)
    print(pressure, {"swaps": num_swaps, "preemptions": num_preemptions})
    # Who came last, or is furthest ahead, may make room again; not without a token in between.
    assert max(each.num_swaps for each in timings) <= MAX_OUTPUT
    if pressure.policy == "fcfs":
        assert num_preemptions > 0
        preemption = pressure.decode["preemption"]
        if preemption != "cheaper":  # what costs less is this machine's to say
            assert (num_swaps > 0) == (preemption == "swap")
        has_host_memory = any(view.num_swap_blocks > 0 for view in views)
        assert has_host_memory == (preemption != "recompute"), "shown, and checked"


async def test_what_no_worker_can_hold_is_refused_at_once_and_says_what_to_do(
    pressed: tuple[Pressure, LocalCluster],
) -> None:
    _, cluster = pressed
    async with cluster.client() as client:
        for num_choices in (1, 3):
            with pytest.raises(CanNeverFit, match="shorten the request or start workers"):
                await client.generate((5,) * 30, max_tokens=11, n=num_choices, timeout_s=60.0)
        fits = await client.generate((5,) * 30, max_tokens=10, ignore_eos=True, timeout_s=60.0)
    assert len(fits.token_ids) == 10
