"""Callers that leave, are late or slow; a worker or a router asked to go: nobody else notices."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.settings import ROOT
from deploy.local.testing import Saboteur
from runtime.testing import end_now
from tandemserve import (
    AsyncClient,
    AsyncStream,
    ClusterStatus,
    DeadlineExceeded,
    Delta,
    NoWorkerAvailable,
    RequestCancelled,
    WorkerView,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]
ExtraWorker = Callable[..., AbstractAsyncContextManager[ChildProcess]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]

PATIENCE_S = 120.0
# Where this process is held up until an answer is over, the caller leaves the next one.
MAX_TRIES = 10
NUM_CHOICES, NUM_OUTPUT = 8, 400
LONG = {"n": NUM_CHOICES, "max_tokens": NUM_OUTPUT, "ignore_eos": True, "seed": 1}
SHORT_PROMPT, LONG_PROMPT = [7, 8, 9], [5 + i % 300 for i in range(110)]
_rng = random.Random(23)
PROMPTS = [tuple(_rng.choices(range(3, 320), k=n)) for n in (17, 40, 100) for _ in range(6)]
NUM_OF_EACH = 64
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


async def read_tokens(stream: AsyncStream, at_least: int) -> int:
    num_tokens = 0
    async for event in stream:
        if isinstance(event, Delta):
            num_tokens += len(event.token_ids)
        if num_tokens >= at_least:
            break
    return num_tokens


async def cut_short(
    leave: Callable[[AsyncClient], Awaitable[None]],
    cluster: LocalCluster,
    assert_empty: AssertEmpty,
    num_choices: int = NUM_CHOICES,
) -> tuple[ClusterStatus, ClusterStatus]:
    """What a router says before and after a caller left, when every block is back.

    At once, by whatever pace this machine has: not all tokens were computed.
    """
    async with cluster.client() as client:
        for _ in range(MAX_TRIES):
            before = await client.admin.status()
            await leave(client)
            await assert_empty(cluster)
            after = await client.admin.status()
            if after.num_output_tokens - before.num_output_tokens < num_choices * NUM_OUTPUT:
                return before, after
    raise AssertionError("every answer was computed to its end")


@pytest.mark.parametrize("num_tokens", [1, 100])
async def test_a_cancelled_request_gives_its_blocks_back_at_once(
    cluster: LocalCluster, assert_empty: AssertEmpty, num_tokens: int
) -> None:
    async def cancel(client: AsyncClient) -> None:
        stream = client.stream(SHORT_PROMPT, **LONG)  # type: ignore[arg-type]
        await read_tokens(stream, num_tokens)
        stream.cancel()
        with pytest.raises(RequestCancelled):
            await stream.completion()

    before, after = await cut_short(cancel, cluster, assert_empty)
    assert (after.num_cancelled, after.num_failed) == (before.num_cancelled + 1, before.num_failed)


async def test_a_request_cancelled_while_its_prompt_is_computed_ends_on_both_workers(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    async def cancel(client: AsyncClient) -> None:
        num_finished = (await client.admin.status()).num_finished
        # Sixteen prompts of four chunks each: early ones hold decode blocks already.
        stream = client.stream(LONG_PROMPT, **LONG | {"n": 16})  # type: ignore[arg-type]

        async def holds_both_legs() -> bool:
            holdings = (await client.admin.reservations()).holdings
            is_over = (await client.admin.status()).num_finished > num_finished
            return is_over or {"prefill", "decode"} <= {holding.leg for holding in holdings}

        await until(holds_both_legs)
        stream.cancel()

    await cut_short(cancel, cluster, assert_empty, num_choices=16)


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
    cluster: LocalCluster, assert_empty: AssertEmpty
) -> None:
    async def die(_: AsyncClient) -> None:
        await begin_and_die(cluster.endpoint)

    before, after = await cut_short(die, cluster, assert_empty)
    assert after.num_cancelled == before.num_cancelled + 1


@pytest.mark.parametrize("prompt", [SHORT_PROMPT, LONG_PROMPT], ids=["short", "long"])
async def test_a_passed_deadline_is_an_error_and_gives_the_blocks_back(
    cluster: LocalCluster, assert_empty: AssertEmpty, prompt: list[int]
) -> None:
    async def be_late(client: AsyncClient) -> None:
        stream = client.stream(prompt, **LONG, timeout_s=0.05)  # type: ignore[arg-type]
        with pytest.raises(DeadlineExceeded, match="; "):
            await stream.completion()

    await cut_short(be_late, cluster, assert_empty)


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


async def ask_all(client: AsyncClient) -> list[Prompt]:
    options = {"max_tokens": NUM_OF_EACH, "temperature": 0.0, "ignore_eos": True}
    calls = (client.generate(p, timeout_s=PATIENCE_S, **options) for p in PROMPTS)  # type: ignore[arg-type]
    return [answer.token_ids for answer in await asyncio.gather(*calls)]


@pytest.mark.parametrize(
    ("module", "worker_id", "peers", "partners"),
    [
        ("decode_worker", "decode-x", ("decode-0", "decode-1"), ("prefill-0",)),
        ("prefill_worker", "prefill-x", ("prefill-0",), ("decode-0", "decode-1")),
    ],
)
async def test_a_worker_that_is_asked_to_go_hands_over_what_it_cannot_finish_in_time(
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
    module: str,
    worker_id: str,
    peers: tuple[str, ...],
    partners: tuple[str, ...],
) -> None:
    """All work comes to it, and none can end: the workers that it needs stand still."""
    saboteur = Saboteur(cluster)
    expected = greedy("llama", PROMPTS, NUM_OF_EACH)
    settings = {"drain_timeout_s": "0.01", "num_blocks": "128"}
    async with (
        cluster.client() as client,
        extra_worker(cluster, module, model_folders["llama"], worker_id, **settings) as leaving,
    ):

        async def view() -> WorkerView | None:
            views = {each.worker_id: each for each in await client.admin.workers()}
            return views.get(worker_id)

        async def is_ready() -> bool:
            now = await view()
            return now is not None and now.state == "ready"

        async def is_busy() -> bool:
            now = await view()
            return now is not None and now.num_free_blocks < now.num_blocks

        await until(is_ready)
        for peer in peers:
            await client.admin.cordon(peer)
        try:
            saboteur.freeze(*partners)
            asking = asyncio.create_task(ask_all(client))
            await until(is_busy)
            leaving.terminate()
            assert await leaving.wait_ended(PATIENCE_S)
        finally:
            saboteur.thaw_all()
        for peer in peers:
            await client.admin.uncordon(peer)
        assert await asking == expected
        assert leaving.ended_well
        assert "drained" in leaving.log_path.read_text("utf-8")
    await assert_empty(cluster)


async def test_a_router_that_is_asked_to_end_finishes_what_runs_and_refuses_the_rest(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    router, saboteur = cluster.process("router-0"), Saboteur(cluster)
    async with AsyncClient(cluster.endpoint, max_retries=0) as client:
        # What runs goes on after the first refusal, however fast it is.
        for _ in range(MAX_TRIES):
            stream = client.stream(SHORT_PROMPT, **LONG)  # type: ignore[arg-type]
            await read_tokens(stream, 1)
            saboteur.freeze("decode-0", "decode-1")
            if (await client.admin.requests()).num_running:
                break
            saboteur.thaw_all()
            await stream.completion()
        else:
            raise AssertionError("every answer was over before it could be held")
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
