"""The router's word to the ledger: always answered, and true again after the ledger was gone."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cluster.errors import ClaimHeldElsewhere, LedgerUnavailable
from cluster.ledger import RouterLife, Shares, WorkerLife
from cluster.memory_ledger import MemoryLedger
from cluster.testing import FaultyLedger
from router.events import (
    Claim,
    Event,
    Extend,
    ExtensionAnswered,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    Role,
    TransferHolding,
)
from router.ledger_client import LedgerAction, LedgerClient
from router.leg import Leg, LegState
from runtime.clock import ManualClock
from scheduling.errors import StaleIncarnation, TandemError
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

PATIENCE_S = 10.0
WORKERS = (
    WorkerLife(WorkerId("decode-0"), Incarnation(1)),
    WorkerLife(WorkerId("decode-1"), Incarnation(1)),
)
LEASE_S = 10.0
LOST = LedgerUnavailable("extend", "test", "is down")


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - other tasks run meanwhile, no time passes
            await asyncio.sleep(0)


@dataclass
class Desk:
    """A client over a ledger with two workers of eight blocks."""

    clock: ManualClock = field(default_factory=ManualClock)
    answers: list[Event] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    legs: list[Leg] = field(default_factory=list)
    ledger: FaultyLedger = field(init=False)
    client: LedgerClient = field(init=False)

    async def open(self) -> "Desk":
        self.ledger = FaultyLedger(MemoryLedger(self.clock))
        for worker in WORKERS:
            await self.ledger.set_capacity(worker, 8, Shares())
        self.client = LedgerClient(
            self.ledger,
            RouterId("r"),
            Incarnation(1),
            LEASE_S,
            self.answer,
            lambda: self.legs,
            lambda: [(worker, 8, Shares()) for worker in WORKERS],
        )
        await self.client.start()
        return self

    def answer(self, event: Event) -> None:
        self.answers.append(event)
        self.news.set()

    async def ask(self, action: LedgerAction) -> Event:
        """Perform and wait for the one answer."""
        num_before = len(self.answers)
        self.client.perform(action)
        async with asyncio.timeout(PATIENCE_S):
            while len(self.answers) == num_before:
                self.news.clear()
                await self.news.wait()
        return self.answers[-1]

    async def settled(self) -> None:
        """Wait until no operation runs."""
        await until(lambda: not self.client.is_busy)

    async def reserved(self) -> dict[str, int]:
        books = (await self.ledger.inner.snapshot()).workers
        return {book.worker.worker_id: book.num_reserved for book in books}


def claim_of(number: int, role: Role = "decode") -> Claim:
    return Claim(TaskId(f"r/0~{number}"), role, number)


def reserve(number: int, num_blocks: int) -> Reserve:
    preferences = tuple((worker.worker_id, worker.incarnation) for worker in WORKERS)
    return Reserve(claim_of(number), preferences, num_blocks, "general")


def held(number: int, num_blocks: int, worker: WorkerLife = WORKERS[0]) -> Leg:
    return Leg(claim_of(number), num_blocks, LegState.HELD, worker.worker_id, worker.incarnation)


def granted(
    number: int, worker: WorkerLife = WORKERS[0], is_booked: bool = True
) -> ReservationAnswered:
    claim = claim_of(number)
    return ReservationAnswered(claim, worker.worker_id, worker.incarnation, is_booked)


async def test_a_reservation_goes_to_the_first_preference_with_room() -> None:
    desk = await Desk().open()
    assert await desk.ask(reserve(1, 6)) == granted(1)
    assert await desk.ask(reserve(2, 6)) == granted(2, WORKERS[1])
    assert await desk.ask(reserve(3, 6)) == ReservationAnswered(claim_of(3), None)
    assert await desk.reserved() == {"decode-0": 6, "decode-1": 6}


async def test_what_is_freed_in_the_same_breath_may_be_reserved() -> None:
    """Else a full cluster would wait out a refusal after every answer that ends."""
    desk = await Desk().open()
    await desk.ask(reserve(1, 8))
    await desk.ask(reserve(2, 8))
    desk.client.perform(ReleaseHolding(claim_of(1)))
    assert await desk.ask(reserve(3, 8)) == granted(3)
    desk.client.perform(ReleaseHolding(claim_of(2)))
    extension = Extend(claim_of(3), 1, 1)
    assert await desk.ask(extension) == ExtensionAnswered(claim_of(3), 1, False)


async def test_what_is_freed_travels_with_what_is_asked_for_next_and_before_it() -> None:
    """Also where it waited for company, and where it has just left."""
    desk = await Desk().open()
    await desk.ask(reserve(1, 8))
    await desk.ask(reserve(2, 8))
    desk.ledger.calls.clear()
    gate = desk.ledger.answer_waits_for["release_many"] = asyncio.Event()
    for number in (3, 4):
        desk.client.perform(ReleaseHolding(claim_of(number - 2)))
        await asyncio.sleep(0)
        assert isinstance(await desk.ask(reserve(number, 8)), ReservationAnswered)
        assert desk.answers[-1] in (granted(number), granted(number, WORKERS[1]))
    assert desk.ledger.calls == ["release_many", "reserve"] * 2, "no answer is waited for"
    gate.set()
    await desk.settled()


async def test_transfers_and_releases_of_one_breath_take_two_round_trips() -> None:
    desk = await Desk().open()
    for number in (1, 2, 3):
        await desk.ask(reserve(number, 2))
    desk.ledger.calls.clear()
    for number in (1, 2, 3):
        desk.client.perform(TransferHolding(claim_of(number)))
    for number in (1, 2):
        desk.client.perform(ReleaseHolding(claim_of(number)))
    await desk.settled()
    assert desk.ledger.calls == ["transfer_many", "release_many"]
    (kept,) = (await desk.ledger.snapshot()).holdings
    assert (kept.claim.task_id, kept.state) == (claim_of(3).task_id, "committed")


async def test_a_defect_in_a_transfer_keeps_no_blocks_from_being_released() -> None:
    desk = await Desk().open()
    await desk.ask(reserve(1, 2))
    desk.ledger.error_by_operation["transfer_many"] = RuntimeError("a script is wrong")
    desk.client.perform(TransferHolding(claim_of(1)))
    desk.client.perform(ReleaseHolding(claim_of(1)))
    await desk.settled()
    assert await desk.reserved() == {"decode-0": 0, "decode-1": 0}


async def test_what_is_released_while_others_are_on_their_way_follows_them() -> None:
    desk = await Desk().open()
    for number in (1, 2):
        await desk.ask(reserve(number, 2))
    gate = desk.ledger.answer_waits_for["release_many"] = asyncio.Event()
    desk.client.perform(ReleaseHolding(claim_of(1)))
    await until(lambda: desk.ledger.calls[-1] == "release_many")
    desk.client.perform(ReleaseHolding(claim_of(2)))
    gate.set()
    await desk.settled()
    assert await desk.reserved() == {"decode-0": 0, "decode-1": 0}


@pytest.mark.parametrize(
    "error",
    [
        StaleIncarnation("another life has the name"),
        ClaimHeldElsewhere(TaskId("r/0~1"), "decode", RouterId("other")),
    ],
)
async def test_every_question_is_answered_whatever_the_ledger_says(error: TandemError) -> None:
    desk = await Desk().open()
    desk.ledger.error_by_operation["reserve"] = error
    assert await desk.ask(reserve(1, 2)) == ReservationAnswered(claim_of(1), None)
    await desk.ask(reserve(2, 2))
    desk.ledger.error_by_operation["extend"] = error
    answer = await desk.ask(Extend(claim_of(2), 1, 1))
    assert answer == ExtensionAnswered(claim_of(2), 1, False)


async def test_a_defect_of_the_ledger_leaves_the_question_to_the_worker() -> None:
    """As without the ledger: a task that is never answered hangs until its deadline."""
    desk = await Desk().open()
    await desk.ask(reserve(9, 1))
    defect = RuntimeError("a script is wrong")
    desk.ledger.error_by_operation |= {"reserve": defect, "reserve_many": defect, "extend": defect}
    desk.client.perform(reserve(1, 2))
    desk.client.perform(reserve(2, 2))
    desk.client.perform(Extend(claim_of(9), 1, 1))
    await until(lambda: len(desk.answers) == 4)
    assert ExtensionAnswered(claim_of(9), 1, True) in desk.answers
    answers = [each for each in desk.answers[1:] if isinstance(each, ReservationAnswered)]
    assert sorted(each.is_booked for each in answers) == [False, True]
    assert {each.worker_id for each in answers} == {"decode-0"}


async def test_without_the_ledger_the_first_preference_decides() -> None:
    desk = await Desk().open()
    desk.ledger.is_down = True
    assert await desk.ask(reserve(1, 100)) == granted(1, is_booked=False)
    assert not desk.client.is_available
    extension = await desk.ask(Extend(claim_of(1), 4, 1))
    assert extension == ExtensionAnswered(claim_of(1), 4, True)
    num_calls = len(desk.ledger.calls)
    await desk.ask(reserve(2, 1))
    assert len(desk.ledger.calls) == num_calls, "a ledger that is gone is not asked again"


async def test_a_ledger_that_returns_is_told_what_the_workers_hold() -> None:
    desk = await Desk().open()
    await desk.ask(reserve(1, 3))
    desk.ledger.is_down = True
    await desk.ask(reserve(2, 2))
    desk.client.perform(ReleaseHolding(claim_of(1)))
    desk.legs = [held(2, 2)]
    desk.ledger.is_down = False
    await desk.client.start()
    assert desk.client.is_available
    assert await desk.reserved() == {"decode-0": 2, "decode-1": 0}


async def test_a_ledger_that_was_restarted_empty_is_filled_by_the_next_renewal() -> None:
    """So fast that no operation failed; and before any worker has told it of its pool."""
    desk = await Desk().open()
    await desk.ask(reserve(1, 3))
    desk.legs = [held(1, 3)]
    desk.ledger.inner = MemoryLedger(desk.clock)
    desk.client.look_again()
    await desk.settled()
    assert desk.client.is_available
    assert await desk.reserved() == {"decode-0": 3, "decode-1": 0}
    assert await desk.ask(reserve(2, 6)) == granted(2, WORKERS[1])


async def test_an_empty_ledger_is_noticed_by_the_first_who_asks() -> None:
    desk = await Desk().open()
    desk.legs = [held(1, 3)]
    desk.ledger.inner = MemoryLedger(desk.clock)
    assert await desk.ask(reserve(2, 5)) == granted(2)
    assert await desk.reserved() == {"decode-0": 8, "decode-1": 0}


async def test_a_worker_decides_on_growth_that_the_ledger_knows_nothing_of() -> None:
    """Else an answer that began while the ledger was away could never grow."""
    desk = await Desk().open()
    extension = await desk.ask(Extend(claim_of(7), 1, 1))
    assert extension == ExtensionAnswered(claim_of(7), 1, True)


async def test_legs_that_change_while_the_books_are_restored_are_booked_right() -> None:
    desk = await Desk().open()
    desk.ledger.is_down = True
    await desk.ask(reserve(1, 2))
    desk.legs = [held(1, 2)]
    desk.ledger.is_down = False
    gate = desk.ledger.answer_waits_for["reserve_many"] = asyncio.Event()
    returning = asyncio.create_task(desk.client.start())
    await until(lambda: "reserve_many" in desk.ledger.calls)
    # The first task ends and another begins while the ledger is being told of the first.
    desk.client.perform(ReleaseHolding(claim_of(1)))
    await desk.ask(reserve(2, 5))
    desk.legs = [held(2, 5)]
    gate.set()
    await asyncio.wait_for(returning, PATIENCE_S)
    await desk.settled()
    assert await desk.reserved() == {"decode-0": 5, "decode-1": 0}


async def test_an_answer_to_an_earlier_life_is_not_believed() -> None:
    desk = await Desk().open()
    gate = desk.ledger.answer_waits_for["reserve"] = asyncio.Event()
    desk.client.perform(reserve(1, 3))
    await until(lambda: "reserve" in desk.ledger.calls)
    desk.ledger.error_by_operation["extend"] = LOST
    await desk.ask(Extend(claim_of(9), 1, 1))
    await desk.client.start()
    assert await desk.reserved() == {"decode-0": 0, "decode-1": 0}
    gate.set()
    await desk.settled()
    assert desk.answers[-1] == granted(1)
    assert await desk.reserved() == {"decode-0": 3, "decode-1": 0}


async def test_a_lapsed_lease_is_taken_again_and_the_holdings_with_it() -> None:
    desk = await Desk().open()
    await desk.ask(reserve(1, 3))
    desk.legs = [held(1, 3)]
    desk.clock.advance(LEASE_S * 2)
    await desk.ledger.inner.sweep()
    assert await desk.ask(Extend(claim_of(1), 1, 1)) == ExtensionAnswered(claim_of(1), 1, True)
    assert await desk.ask(reserve(2, 2)) == granted(2)
    assert await desk.reserved() == {"decode-0": 6, "decode-1": 0}


async def test_holdings_swept_by_a_clock_that_was_set_are_booked_again_from_the_legs() -> None:
    desk = await Desk().open()
    await desk.ask(reserve(1, 3))
    await desk.ask(reserve(2, 6))
    # What the workers hold by now: one of them grew, and the ledger was not told.
    desk.legs = [held(1, 4), held(2, 6, WORKERS[1])]
    desk.clock.jump(86_400.0)
    assert len((await desk.ledger.inner.sweep()).freed) == 2
    assert await desk.reserved() == {"decode-0": 0, "decode-1": 0}
    desk.client.look_again()  # the renewal, which is answered with `lapsed`
    await desk.settled()
    assert desk.client.is_available
    assert await desk.reserved() == {"decode-0": 4, "decode-1": 6}
    desk.client.perform(ReleaseHolding(claim_of(1)))
    await desk.settled()
    assert await desk.reserved() == {"decode-0": 0, "decode-1": 6}


async def test_many_who_find_the_lease_lapsed_start_one_new_life() -> None:
    desk = await Desk().open()
    desk.clock.advance(LEASE_S * 2)
    for number in range(1, 5):
        desk.client.perform(reserve(number, 1))
    await desk.settled()
    assert desk.answers == [granted(number) for number in range(1, 5)]
    assert await desk.reserved() == {"decode-0": 4, "decode-1": 0}


async def test_a_router_whose_name_was_taken_over_goes_on_without_the_ledger() -> None:
    desk = await Desk().open()
    await desk.ledger.inner.renew(RouterLife(RouterId("r"), Incarnation(99)), LEASE_S)
    await desk.client.start()
    assert not desk.client.is_available
    assert await desk.ask(reserve(1, 1)) == granted(1, is_booked=False)


async def test_closing_gives_everything_back() -> None:
    desk = await Desk().open()
    await desk.ask(reserve(1, 3))
    await desk.client.close(PATIENCE_S)
    assert await desk.reserved() == {"decode-0": 0, "decode-1": 0}
