"""Callers that leave, are late or slow, and a router that is asked to go: nobody else notices."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.settings import ROOT
from deploy.local.testing import Saboteur
from runtime.clock import MonotonicClock
from runtime.testing import end_now
from tandemserve import (
    AsyncClient,
    AsyncStream,
    DeadlineExceeded,
    Delta,
    NoWorkerAvailable,
    RequestCancelled,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
# Until every block is back after a caller has left; an iteration and a round trip take a few
# milliseconds, a busy machine the rest. A slow machine has as long as `LONG` takes there.
SOON_S = 5.0
# Where this process is held up until an answer is over, the caller leaves the next one.
MAX_TRIES = 10
NUM_CHOICES, NUM_OUTPUT = 8, 400
LONG = {"n": NUM_CHOICES, "max_tokens": NUM_OUTPUT, "ignore_eos": True, "seed": 1}
SHORT_PROMPT, LONG_PROMPT = [7, 8, 9], [5 + i % 300 for i in range(110)]
# Reads one event, says so, and then waits to be killed.
CLIENT_PROCESS = """
import sys
from tandemserve import Client
stream = Client(sys.argv[1]).stream([7, 8, 9], n=8, max_tokens=400, ignore_eos=True, seed=1)
next(stream)
print("started", flush=True)
sys.stdin.read()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        router={"drain_timeout_s": str(PATIENCE_S)},
        decode={"num_blocks": "256"},
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def soon_s(cluster: LocalCluster) -> float:
    """What counts as at once on this machine."""
    async with cluster.client() as client:
        began_at_s = MonotonicClock().now()
        await client.generate(SHORT_PROMPT, **LONG)  # type: ignore[arg-type]
        took_s = MonotonicClock().now() - began_at_s
    print(f"a long answer takes {took_s:.1f} s")
    return max(SOON_S, took_s)


async def read_tokens(stream: AsyncStream, at_least: int) -> int:
    num_tokens = 0
    async for event in stream:
        if isinstance(event, Delta):
            num_tokens += len(event.token_ids)
        if num_tokens >= at_least:
            break
    return num_tokens


async def assert_few_tokens_since(client: AsyncClient, num_before: int) -> None:
    status = await client.admin.status()
    assert status.num_output_tokens - num_before < NUM_CHOICES * NUM_OUTPUT


@pytest.mark.parametrize("num_tokens", [1, 100])
async def test_a_cancelled_request_gives_its_blocks_back_at_once(
    cluster: LocalCluster, assert_empty: AssertEmpty, soon_s: float, num_tokens: int
) -> None:
    async with cluster.client() as client:
        for _ in range(MAX_TRIES):
            before = await client.admin.status()
            stream = client.stream(SHORT_PROMPT, **LONG)  # type: ignore[arg-type]
            await read_tokens(stream, num_tokens)
            stream.cancel()
            with pytest.raises(RequestCancelled):
                await stream.completion()
            assert await assert_empty(cluster, soon_s) < soon_s
            after = await client.admin.status()
            if after.num_finished == before.num_finished:
                break
        await assert_few_tokens_since(client, before.num_output_tokens)
    assert (after.num_cancelled, after.num_failed) == (before.num_cancelled + 1, before.num_failed)


async def test_a_request_cancelled_while_its_prompt_is_computed_ends_on_both_workers(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until, soon_s: float
) -> None:
    async with cluster.client() as client:
        # Sixteen prompts of four chunks each: early ones hold decode blocks already.
        stream = client.stream(LONG_PROMPT, **LONG | {"n": 16})  # type: ignore[arg-type]

        async def holds_both_legs() -> bool:
            holdings = (await client.admin.reservations()).holdings
            return {"prefill", "decode"} <= {holding.leg for holding in holdings}

        await until(holds_both_legs)
        stream.cancel()
        assert await assert_empty(cluster, soon_s) < soon_s


async def begin_and_die(endpoint: str) -> None:
    """A client process that is killed when its answers have begun."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT_PROCESS, endpoint),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"started\n"
    finally:
        await end_now(process)


async def test_the_blocks_of_a_client_that_dies_are_back_at_once(
    cluster: LocalCluster, assert_empty: AssertEmpty, soon_s: float
) -> None:
    async with cluster.client() as client:
        for _ in range(MAX_TRIES):
            before = await client.admin.status()
            await begin_and_die(cluster.endpoint)
            assert await assert_empty(cluster, soon_s) < soon_s
            after = await client.admin.status()
            if after.num_finished == before.num_finished:
                break
        await assert_few_tokens_since(client, before.num_output_tokens)
    assert after.num_cancelled == before.num_cancelled + 1


@pytest.mark.parametrize("prompt", [SHORT_PROMPT, LONG_PROMPT], ids=["short", "long"])
async def test_a_passed_deadline_is_an_error_and_gives_the_blocks_back(
    cluster: LocalCluster, assert_empty: AssertEmpty, soon_s: float, prompt: list[int]
) -> None:
    async with cluster.client() as client:
        stream = client.stream(prompt, **LONG, timeout_s=0.05)  # type: ignore[arg-type]
        with pytest.raises(DeadlineExceeded, match="; "):
            await stream.completion()
        assert await assert_empty(cluster, soon_s) < soon_s


async def test_a_slow_reader_holds_nobody_up_and_misses_nothing(
    cluster: LocalCluster, assert_empty: AssertEmpty
) -> None:
    # With these logprobs an answer is far larger than what gRPC buffers.
    options = LONG | {"logprobs": 20, "temperature": 0.8}
    async with cluster.client() as slow, cluster.client() as quick:
        expected = await quick.generate(SHORT_PROMPT, **options)  # type: ignore[arg-type]
        await assert_empty(cluster)
        stream = slow.stream(SHORT_PROMPT, **options)  # type: ignore[arg-type]
        await read_tokens(stream, 1)
        answers = await asyncio.gather(
            *(quick.generate(SHORT_PROMPT, max_tokens=20, timeout_s=PATIENCE_S) for _ in range(32))
        )
        assert len(answers) == 32
        # The answer was computed without being read, and holds no blocks any more.
        await assert_empty(cluster)
        answer = await stream.completion()
    assert answer.choices[0].token_ids == expected.choices[0].token_ids
    assert [c.token_ids for c in answer.choices] == [c.token_ids for c in expected.choices]
    assert [c.text for c in answer.choices] == [c.text for c in expected.choices]
    assert all(len(choice.logprobs) == NUM_OUTPUT for choice in answer.choices)


async def test_a_router_that_is_asked_to_end_finishes_what_runs_and_refuses_the_rest(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    router, saboteur = cluster.process("router-0"), Saboteur(cluster)
    async with AsyncClient(cluster.endpoint, max_retries=0) as client:
        stream = client.stream(SHORT_PROMPT, **LONG)  # type: ignore[arg-type]
        await read_tokens(stream, 1)
        # What runs goes on after the first refusal, however fast it is.
        saboteur.freeze("decode-0", "decode-1")
        router.terminate()

        refusals: list[NoWorkerAvailable] = []

        async def refuses() -> bool:
            try:
                await client.generate(SHORT_PROMPT, max_tokens=1)
            except NoWorkerAvailable as error:
                refusals.append(error)
            return bool(refusals)

        try:
            await until(refuses)
            assert router.is_running
        finally:
            saboteur.thaw_all()
        assert "shutting down; send the request to another" in refusals[0].message
        answer = await stream.completion()
        assert [len(choice.token_ids) for choice in answer.choices] == [NUM_OUTPUT] * NUM_CHOICES
        assert await router.wait_ended(PATIENCE_S)
        assert router.ended_well
    router.start()

    async def all_are_ready() -> bool:
        views = await cluster.workers()
        return [view.state for view in views] == ["ready"] * 3

    await until(all_are_ready)
    async with cluster.client() as client:
        again = await client.generate(SHORT_PROMPT, **LONG)  # type: ignore[arg-type]
    assert [c.token_ids for c in again.choices] == [c.token_ids for c in answer.choices]
    await assert_empty(cluster)
