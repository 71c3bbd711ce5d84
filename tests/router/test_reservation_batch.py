"""Reservations travel together, and each still gets its own answer."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.errors import LedgerUnavailable, StaleAttempt
from cluster.ledger import Claim, Grant, Refusal, ReserveRequest, RouterLife, Shares, WorkerLife
from cluster.memory_ledger import MemoryLedger
from cluster.testing import FaultyLedger
from router.reservation_batch import ReservationBatch
from runtime.clock import ManualClock
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

PATIENCE_S = 10.0
LIFE = RouterLife(RouterId("r"), Incarnation(1))
WORKER = WorkerLife(WorkerId("prefill-0"), Incarnation(1))


@dataclass
class Desk:
    """A batch over a ledger with one worker of eight blocks."""

    ledger: FaultyLedger = field(init=False)
    batch: ReservationBatch = field(init=False)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> "Desk":
        self.ledger = FaultyLedger(MemoryLedger(ManualClock()))
        await self.ledger.set_capacity(WORKER, 8, Shares())
        await self.ledger.renew(LIFE, 10.0)
        self.ledger.calls.clear()
        self.batch = ReservationBatch(self.ledger, self.spawn, self.may_send)
        return self

    async def may_send(self) -> None:
        self.ledger.calls.append("may send")

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def ask(self, name: str, num_blocks: int = 1) -> asyncio.Future[Grant | Refusal]:
        claim = Claim(TaskId(name), "prefill", 1)
        request = ReserveRequest(claim, (WORKER,), num_blocks)
        return self.batch.add(LIFE, request)


async def all_of(*asked: asyncio.Future[Grant | Refusal]) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.gather(*asked, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - other tasks run meanwhile, no time passes
            await asyncio.sleep(0)


async def test_one_alone_is_sent_alone() -> None:
    desk = await Desk().open()
    assert await all_of(desk.ask("a")) == [Grant(WORKER, 1)]
    assert desk.ledger.calls == ["may send", "reserve"]


async def test_those_of_one_breath_go_together_and_are_granted_in_order() -> None:
    desk = await Desk().open()
    outcomes = await all_of(desk.ask("a", 6), desk.ask("b", 6), desk.ask("c", 2))
    assert [type(outcome) for outcome in outcomes] == [Grant, Refusal, Grant]
    assert desk.ledger.calls == ["may send", "reserve_many"]


async def test_what_comes_while_a_batch_is_under_way_makes_the_next_one() -> None:
    desk = await Desk().open()
    gate = desk.ledger.answer_waits_for["reserve"] = asyncio.Event()
    first = desk.ask("a")
    await until(lambda: desk.ledger.calls == ["may send", "reserve"])
    others = [desk.ask(name) for name in "bcd"]
    await asyncio.sleep(0)
    gate.set()
    assert await all_of(first, *others) == [Grant(WORKER, 1)] * 4
    assert desk.ledger.calls == ["may send", "reserve", "may send", "reserve_many"]


async def test_an_error_of_one_is_its_own() -> None:
    desk = await Desk().open()
    desk.ledger.error_by_operation["reserve_many"] = StaleAttempt(TaskId("b"), "prefill", 1)
    outcomes = await all_of(desk.ask("a"), desk.ask("b"))
    assert outcomes == [Grant(WORKER, 1)] * 2
    assert desk.ledger.calls == ["may send", "reserve_many", "reserve", "reserve"]


async def test_a_ledger_that_is_away_is_everybodys_error_at_once() -> None:
    desk = await Desk().open()
    desk.ledger.is_down = True
    outcomes = await all_of(desk.ask("a"), desk.ask("b"))
    assert [type(outcome) for outcome in outcomes] == [LedgerUnavailable] * 2
    assert desk.ledger.calls == ["may send", "reserve_many"]
    desk.ledger.is_down = False
    assert await all_of(desk.ask("c")) == [Grant(WORKER, 1)]


async def test_one_that_gave_up_waiting_harms_no_other() -> None:
    desk = await Desk().open()
    gate = desk.ledger.answer_waits_for["reserve_many"] = asyncio.Event()
    first, second = desk.ask("a"), desk.ask("b")
    await until(lambda: desk.ledger.calls == ["may send", "reserve_many"])
    first.cancel()
    gate.set()
    assert await all_of(second) == [Grant(WORKER, 1)]


async def test_a_batch_that_is_cancelled_is_no_cancellation_of_those_who_wait() -> None:
    desk = await Desk().open()
    desk.ledger.answer_waits_for["reserve"] = asyncio.Event()
    first = desk.ask("a")
    await until(lambda: desk.ledger.calls == ["may send", "reserve"])
    later = desk.ask("b")
    await asyncio.sleep(0)
    for task in desk.tasks:
        task.cancel()
    for asked in (first, later):
        with pytest.raises(LedgerUnavailable, match="ended before there was an answer"):
            await asyncio.wait_for(asked, PATIENCE_S)
    del desk.ledger.answer_waits_for["reserve"]
    desk.ledger.calls.clear()
    assert await all_of(desk.ask("c")) == [Grant(WORKER, 1)]
    assert desk.ledger.calls == ["may send", "reserve"], "nothing is booked for who was refused"


@pytest.mark.parametrize("operation", ["reserve", "reserve_many"])
async def test_a_defect_is_told_to_whom_it_concerns_and_harms_nobody_later(operation: str) -> None:
    desk = await Desk().open()
    desk.ledger.error_by_operation[operation] = RuntimeError("a script is wrong")
    asked = [desk.ask("a")] if operation == "reserve" else [desk.ask("a"), desk.ask("b")]
    outcomes = await all_of(*asked)
    assert [type(outcome) for outcome in outcomes] == (
        [RuntimeError] if operation == "reserve" else [Grant, Grant]
    )
    assert await all_of(desk.ask("c"), desk.ask("d")) == [Grant(WORKER, 1)] * 2
