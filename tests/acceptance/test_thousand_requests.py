"""A thousand requests, many of them broken off: the rest is right, and every block comes back."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from tandemserve import AsyncClient, DeadlineExceeded, Delta, RequestCancelled

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]

NUM_REQUESTS = 1000
NUM_AT_ONCE = 64
MAX_OUTPUT = 32
# Five prompts of each.
LENGTHS = (1, 3, 16, 17, 33, 47, 70, 100)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["default", "fcfs"])
async def cluster(
    request: pytest.FixtureRequest, start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"], router={"policy": request.param}, decode={"num_blocks": "40"}
    ) as running:
        yield running


def moment_s(rng: random.Random) -> float:
    """From 1 ms to 1 s, as often below as above 30 ms: amid an answer on any machine."""
    return float(10 ** rng.uniform(-3.0, 0.0))


async def ask(client: AsyncClient, rng: random.Random, prompt: Prompt, expected: Prompt) -> str:
    """One request that its caller may lose patience with; says how it ended."""
    max_tokens = rng.randint(1, MAX_OUTPUT)
    num_choices = rng.choice((1, 1, 1, 2))
    fate = rng.choice(("finish", "finish", "cancel", "leave", "deadline"))
    timeout_s = moment_s(rng) if fate == "deadline" else 240.0
    options = {"max_tokens": max_tokens, "n": num_choices, "timeout_s": timeout_s}
    timer: asyncio.TimerHandle | None = None
    cancel_after_s = moment_s(rng)
    leave_after = rng.randint(1, max_tokens) if fate == "leave" else None
    received: list[list[int]] = [[] for _ in range(num_choices)]
    outcome = "finished"
    try:
        # A deadline may have passed before the call is made.
        stream = client.stream(prompt, temperature=0.0, ignore_eos=True, **options)  # type: ignore[arg-type]
        if fate == "cancel":
            loop = asyncio.get_running_loop()
            timer = loop.call_later(cancel_after_s, stream.cancel)
        async with stream:
            async for event in stream:
                if isinstance(event, Delta):
                    assert event.first_token_index == len(received[event.index])
                    received[event.index] += event.token_ids
                if leave_after is not None and len(received[0]) >= leave_after:
                    outcome = "left"
                    break
    except RequestCancelled:
        assert fate == "cancel"
        outcome = "cancelled"
    except DeadlineExceeded:
        assert fate == "deadline"
        outcome = "too late"
    if timer is not None:
        timer.cancel()
    for tokens in received:
        if outcome == "finished":
            assert len(tokens) == max_tokens
        assert tuple(tokens) == expected[: len(tokens)]
    return outcome


async def test_a_thousand_requests_with_random_cancels_leave_nothing_behind(
    cluster: LocalCluster, greedy: Greedy, assert_empty: AssertEmpty
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    # The same prompts each time: their right answers cost more than the test.
    pool_rng = random.Random(1)
    prompts = [tuple(pool_rng.choices(range(3, 320), k=n)) for n in LENGTHS for _ in range(5)]
    expected = greedy("llama", prompts, MAX_OUTPUT)
    jobs = iter([(random.Random(rng.random()), rng.randrange(40)) for _ in range(NUM_REQUESTS)])
    outcomes: Counter[str] = Counter()

    async def caller(client: AsyncClient) -> None:
        for own_rng, number in jobs:
            outcomes[await ask(client, own_rng, prompts[number], expected[number])] += 1

    async with cluster.client() as client:
        async with asyncio.TaskGroup() as callers:
            for _ in range(NUM_AT_ONCE):
                callers.create_task(caller(client))
        await assert_empty(cluster)
        status = await client.admin.status()
    print(outcomes)
    assert outcomes.total() == NUM_REQUESTS
    assert min(outcomes[name] for name in ("finished", "cancelled", "left", "too late")) > 20
    # What the router counted is what the callers saw, but for answers that crossed a cancel.
    assert status.num_failed == 0
    assert status.num_finished >= outcomes["finished"]
    assert status.num_finished + status.num_cancelled <= NUM_REQUESTS
