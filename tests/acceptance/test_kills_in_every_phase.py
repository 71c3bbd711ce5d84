"""A worker is killed or stops in each phase of a request: not a token is lost, doubled or wrong.

The phase is held by stopping the processes that would end it, so nothing here depends on speed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur, answer_without_gaps
from tandemserve import AsyncClient, Completion, NoWorkerAvailable

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

PREFILL, DECODE = ("prefill-0", "prefill-1"), ("decode-0", "decode-1")
PROMPT = [5 + i % 300 for i in range(90)]
NUM_OUTPUT = 120
MAX_ROUNDS = 20
# Long enough for a busy machine, short enough to wait for.
HEARTBEAT_TIMEOUT_S = "4"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        num_prefill=2,
        router={"heartbeat_interval_s": "0.25", "heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S},
    ) as running:
        yield running


@dataclass
class Case:
    """One request, held in a phase."""

    cluster: LocalCluster
    client: AsyncClient
    saboteur: Saboteur
    until: Until

    async def ask(self) -> Completion:
        return await answer_without_gaps(self.client, PROMPT, NUM_OUTPUT)

    async def is_in(self, phase: str) -> bool:
        status = await self.client.admin.status()
        return bool(getattr(status, f"num_{phase}") == 1)

    async def has_granted(self) -> bool:
        views = await self.client.admin.workers()
        return any(v.num_free_blocks < v.num_blocks for v in views if v.role == "decode")

    async def has_come(
        self, asking: asyncio.Task[Completion], question: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Wait for it; False where it is too late, on a machine that held this process up: the
        answer is there, or workers were stopped for so long that they count as lost."""
        found: list[bool] = []

        async def is_decided() -> bool:
            if await question():
                found.append(True)
            elif asking.done() or not await self.are_ready():
                found.append(False)
            return bool(found)

        await self.until(is_decided)
        return found[0]

    async def are_ready(self) -> bool:
        views = await self.client.admin.workers()
        return [view.state for view in views] == ["ready"] * len((*PREFILL, *DECODE))

    async def has_been_held(self, asking: asyncio.Task[Completion], phase: str) -> bool:
        """Bring it into that phase and keep it there; False where that was missed."""
        if phase == "decoding":
            await self.has_come(asking, lambda: self.is_in(phase))
            self.saboteur.freeze(*DECODE)
            return await self.is_in(phase)
        is_early = phase in ("prefilling", "transferring")
        if is_early and not await self.has_come(asking, self.has_granted):
            return False
        if phase == "transferring":
            self.saboteur.freeze(*DECODE)
            self.saboteur.thaw(*PREFILL)
        return await self.has_come(asking, lambda: self.is_in(phase))

    async def hold(self, phase: str) -> asyncio.Task[Completion]:
        """Begin a request and keep it where it is; again, if that was missed."""
        for _ in range(MAX_ROUNDS):
            if phase in ("prefilling", "transferring"):
                self.saboteur.freeze(*PREFILL)
            elif phase == "generation_queued":
                self.saboteur.freeze(*DECODE)
            asking = asyncio.create_task(self.ask())
            if await self.has_been_held(asking, phase):
                return asking
            self.saboteur.thaw_all()
            with suppress(NoWorkerAvailable):
                await asking
            await self.until(self.are_ready)
        raise AssertionError(f"the request was never seen {phase}")

    async def worker_of(self, leg: str) -> str:
        """Who has blocks of the request; of a leg that has been given back, anybody."""
        holdings = (await self.client.admin.reservations()).holdings
        return next((h.worker_id for h in holdings if h.leg == leg), f"{leg}-0")

    async def until_ready(self, name: str) -> None:
        async def is_ready() -> bool:
            views = {view.worker_id: view for view in await self.client.admin.workers()}
            return name in views and views[name].state == "ready"

        await self.until(is_ready)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
@pytest.mark.parametrize("phase", ["prefilling", "generation_queued", "transferring", "decoding"])
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_an_answer_survives_its_worker(
    cluster: LocalCluster,
    assert_empty: AssertEmpty,
    until: Until,
    fault: str,
    phase: str,
    leg: str,
) -> None:
    async with cluster.client() as client:
        case = Case(cluster, client, Saboteur(cluster), until)
        try:
            expected = await case.ask()
            await assert_empty(cluster)
            asking = await case.hold(phase)
            victim = await case.worker_of(leg)
            if fault == "kill":
                case.saboteur.kill(victim)
                case.saboteur.thaw_all()
            else:
                case.saboteur.freeze(victim)
                case.saboteur.thaw_all(but=victim)
            answer = await asking
            assert answer.choices[0].token_ids == expected.choices[0].token_ids
            assert answer.text == expected.text
            assert answer.choices[0].logprobs == expected.choices[0].logprobs
        finally:
            case.saboteur.thaw_all()
        if fault == "kill":
            case.saboteur.start(victim)
            await cluster.wait_ready(victim)
        else:
            # What it still held belonged to a session that is gone: it is free, and used again.
            await case.until_ready(victim)
        await assert_empty(cluster)
        again = await case.ask()
        assert again.choices[0].token_ids == expected.choices[0].token_ids
    await assert_empty(cluster)
