"""Workers that stop or hang, and what they may still do when they are back."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, Completion, WorkerView

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
ExtraWorker = Callable[..., AbstractAsyncContextManager[ChildProcess]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]
HasPushedTo = Callable[..., Awaitable[bool]]
HealthOf = Callable[[WorkerView, str], Awaitable[int]]

PATIENCE_S = 120.0
NUM_OUTPUT = 64
_rng = random.Random(23)
PROMPTS = [tuple(_rng.choices(range(3, 320), k=n)) for n in (17, 40, 100) for _ in range(6)]
LONG_PROMPT = PROMPTS[-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        # Long enough for a busy machine, short enough to wait for.
        router={"heartbeat_interval_s": "0.25", "heartbeat_timeout_s": "6"},
        decode={"num_blocks": "128", "lease_ttl_s": "3"},
    ) as running:
        yield running


async def ask(client: AsyncClient, prompt: Prompt, num_output: int = NUM_OUTPUT) -> Completion:
    return await client.generate(
        prompt, max_tokens=num_output, temperature=0.0, ignore_eos=True, timeout_s=PATIENCE_S
    )


async def ask_all(client: AsyncClient) -> list[Prompt]:
    answers = await asyncio.gather(*(ask(client, prompt) for prompt in PROMPTS))
    return [answer.token_ids for answer in answers]


async def view_of(client: AsyncClient, worker_id: str) -> WorkerView | None:
    views = await client.admin.workers()
    return next((view for view in views if view.worker_id == worker_id), None)


class Watch:
    """Waits for what the router says of a worker."""

    def __init__(self, client: AsyncClient, until: Until) -> None:
        self._client = client
        self._until = until

    async def state(self, worker_id: str, *wanted: str) -> WorkerView:
        """The view once it is in one of these states; "gone" is one."""
        found: list[WorkerView] = []

        async def is_so() -> bool:
            view = await view_of(self._client, worker_id)
            if view is not None:
                found.append(view)
            return (view.state if view is not None else "gone") in wanted

        await self._until(is_so)
        return found[-1]


async def test_a_prefill_worker_stopped_in_mid_push_cannot_write_into_blocks_given_to_others(
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    greedy: Greedy,
    has_pushed_to: HasPushedTo,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT)
    async with (
        extra_worker(
            cluster, "prefill_worker.stopping_testing", model_folders["llama"], "prefill-x"
        ) as stopping,
        cluster.client() as client,
    ):
        watch = Watch(client, until)
        await watch.state("prefill-x", "ready")
        await client.admin.cordon("prefill-0")
        await until(partial(has_pushed_to, client, "decode-0", "decode-1"))
        os.kill(stopping.pid, signal.SIGUSR1)
        asking = asyncio.create_task(ask(client, LONG_PROMPT))

        async def has_stopped() -> bool:
            return psutil.Process(stopping.pid).status() == psutil.STATUS_STOPPED

        await until(has_stopped)
        await client.admin.uncordon("prefill-0")
        # In the end its entry in Redis runs out as well.
        await watch.state("prefill-x", "lost", "gone")
        assert (await asking).token_ids == expected[-1]
        # Its half-written blocks are in quarantine; all others are used over and over.
        workers = [view for view in await client.admin.workers() if view.role == "decode"]
        assert sum(view.num_blocks - view.num_free_blocks for view in workers) > 0
        assert await ask_all(client) == expected
        os.kill(stopping.pid, signal.SIGCONT)
        # It writes the other half now. It may not publish it, and its session is gone.
        await watch.state("prefill-x", "ready")
        await assert_empty(cluster)
        assert await ask_all(client) == expected
        await assert_empty(cluster)


async def test_a_worker_whose_lease_ran_out_while_it_stood_still_comes_back_as_the_same_life(
    cluster: LocalCluster, greedy: Greedy, assert_empty: AssertEmpty, until: Until
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT)
    saboteur = Saboteur(cluster)
    async with cluster.client() as client:
        watch = Watch(client, until)
        before = await watch.state("decode-1", "ready")
        saboteur.freeze("decode-1")
        try:
            asking = asyncio.create_task(ask_all(client))
            await watch.state("decode-1", "gone")
            assert await asking == expected
        finally:
            saboteur.thaw_all()
        after = await watch.state("decode-1", "ready")
        assert after.incarnation == before.incarnation
        await assert_empty(cluster)
        assert await ask_all(client) == expected
    await assert_empty(cluster)


async def test_a_stuck_engine_is_not_serving_and_its_answers_go_on_elsewhere(
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    greedy: Greedy,
    health_of: HealthOf,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT)
    serving = health_pb2.HealthCheckResponse.SERVING
    settings = {"engine_stall_s": "3", "engine_stall_per_token_s": "0", "num_blocks": "128"}
    async with (
        extra_worker(
            cluster, "decode_worker.testing", model_folders["llama"], "decode-x", **settings
        ) as wedgeable,
        cluster.client() as client,
    ):
        watch = Watch(client, until)
        view = await watch.state("decode-x", "ready")
        # The first turn after this, which some task will begin, does not end. It begins with all.
        for peer in ("decode-0", "decode-1"):
            await client.admin.cordon(peer)
        os.kill(wedgeable.pid, signal.SIGUSR1)
        asking = asyncio.create_task(ask_all(client))

        async def says_why() -> bool:
            now = await view_of(client, "decode-x")
            return now is not None and "the engine has not ended its turn" in now.problem

        async def has_work() -> bool:
            holdings = (await client.admin.reservations()).holdings
            return any(holding.worker_id == "decode-x" for holding in holdings)

        await until(has_work)
        for peer in ("decode-0", "decode-1"):
            await client.admin.uncordon(peer)
        # The broken stream may say less; the next dial is told.
        await until(says_why)
        assert (await watch.state("decode-x", "lost")).address == view.address
        assert await asking == expected
        assert await health_of(view, "tandemserve.internal.v1.WorkerService") != serving
        assert await health_of(view, "") != serving
        os.kill(wedgeable.pid, signal.SIGUSR2)
        await watch.state("decode-x", "ready")
        assert await health_of(view, "") == serving
        await assert_empty(cluster)
        assert await ask_all(client) == expected
    await assert_empty(cluster)


async def test_a_worker_that_was_replaced_while_it_stood_still_ends_and_says_why(
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT)
    saboteur, stale = Saboteur(cluster), cluster.process("decode-1")
    async with cluster.client() as client:
        watch = Watch(client, until)
        before = await watch.state("decode-1", "ready")
        saboteur.freeze("decode-1")
        try:
            await watch.state("decode-1", "gone")
            async with extra_worker(
                cluster, "decode_worker", model_folders["llama"], "decode-1", num_blocks="128"
            ):
                after = await watch.state("decode-1", "ready")
                assert after.incarnation > before.incarnation
                saboteur.thaw_all()
                assert await stale.wait_ended(PATIENCE_S)
                assert not stale.ended_well
                assert "a newer life has taken over the name" in stale.ending().message
                assert await ask_all(client) == expected
                await assert_empty(cluster)
        finally:
            saboteur.thaw_all()
    stale.start()
    await cluster.wait_ready("decode-1")
    await assert_empty(cluster)
