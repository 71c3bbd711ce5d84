"""What several ranks say of their KV, in any order and with some lost, as the core hears it."""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    ExpectKv,
    KvAction,
    KvArrived,
    KvRefused,
    KvSwapped,
    Push,
    PushFinished,
    QuarantineCleared,
    RevokeKv,
    SwapIn,
    SwapOut,
)
from worker.rank_kv import KvEvent, RankKv, RankOutcome

A, B = TaskId("a"), TaskId("b")
EXPORT = KvExport("tcp", "at", 8, 64, WorkerId("decode-0"), Incarnation(1), "here")
BLOCKS, TAGS = (BlockId(1), BlockId(2)), (Generation(1), Generation(1))


def push(task: TaskId) -> Push:
    return Push(task, KvTarget(f"{task}@d", EXPORT, BLOCKS, TAGS), 0, BLOCKS)


def pushed(task: TaskId, copy_s: float = 0.5, transport: str = "tcp") -> PushFinished:
    return PushFinished(task, 2, 64, copy_s, transport=transport)


def failed(task: TaskId, error: str) -> PushFinished:
    return PushFinished(task, 0, 0, 0.0, error)


def test_a_push_has_ended_when_all_ranks_have_pushed_their_share() -> None:
    kv = RankKv(3)
    kv.ordered(push(A))
    assert kv.told(0, pushed(A)).events == []
    assert kv.told(2, pushed(A, 0.7, "shared_memory")).events == []
    (event,) = kv.told(1, pushed(A)).events
    assert event == PushFinished(A, 2, 3 * 64, 0.7, transport="shared_memory")
    assert not kv.is_waiting


def test_the_first_error_of_a_push_is_told_once_and_stops_the_others() -> None:
    kv = RankKv(3)
    kv.ordered(push(A))
    kv.ordered(push(A))
    cancel = CancelPush(A, "a@d")
    assert kv.told(1, failed(A, "first")).orders == [(0, cancel), (2, cancel)]
    assert kv.told(0, failed(A, "second")).orders == []
    outcomes = [kv.told(rank, failed(A, "cancelled")) for rank in (2, 2, 1, 0)]
    events = [event for outcome in outcomes for event in outcome.events]
    assert events == [failed(A, "first"), failed(A, "first")]
    assert not any(outcome.orders for outcome in outcomes)
    kv.ordered(push(A))
    assert not kv.told(0, pushed(A)).orders, "another try is another transfer"


def test_kv_has_arrived_when_every_rank_has_its_share() -> None:
    kv = RankKv(2)
    kv.ordered(AwaitKv(A, BLOCKS, TAGS))
    assert kv.told(1, KvArrived(A, "tcp")).events == []
    assert kv.told(1, KvArrived(A, "tcp")).events == [], "the same rank again is not the other"
    assert kv.told(0, KvArrived(A, "shared_memory")).events == [KvArrived(A, "shared_memory")]


def test_kv_that_one_rank_refuses_is_refused_once() -> None:
    kv = RankKv(2)
    kv.ordered(AwaitKv(A, BLOCKS, TAGS))
    kv.told(0, KvArrived(A, "tcp"))
    refused = KvRefused(A, "transfer_failed", "1 KV blocks did not arrive")
    assert kv.told(1, refused).events == [refused]
    assert kv.told(1, refused).events == []
    assert not kv.is_waiting


def test_no_arrival_is_told_of_blocks_that_were_revoked() -> None:
    kv = RankKv(2)
    kv.ordered(AwaitKv(A, BLOCKS, TAGS))
    kv.told(0, KvArrived(A, "tcp"))
    kv.ordered(RevokeKv(A, BLOCKS))
    assert kv.told(1, KvArrived(A, "tcp")).events == []
    assert kv.told(1, QuarantineCleared(A)).events == []
    assert kv.told(0, QuarantineCleared(A)).events == [QuarantineCleared(A)]
    assert not kv.is_waiting


def test_blocks_are_swapped_when_all_ranks_have_copied_theirs() -> None:
    kv = RankKv(2)
    kv.ordered(SwapOut(BLOCKS, BLOCKS))
    kv.ordered(SwapIn(BLOCKS, BLOCKS))
    out, back = KvSwapped(2, 0.1, is_out=True), KvSwapped(2, 0.2, is_out=False)
    assert kv.told(0, out).events + kv.told(0, back).events == []
    slower = KvSwapped(2, 0.3, is_out=True)
    assert kv.told(1, slower).events == [slower]
    assert kv.told(1, back).events == [back]


def test_a_rank_that_is_lost_fails_what_it_owes_and_holds_up_nothing() -> None:
    kv = RankKv(2)
    for action in (push(A), AwaitKv(A, BLOCKS, TAGS), RevokeKv(B, BLOCKS), SwapOut(BLOCKS, BLOCKS)):
        kv.ordered(action)
    for answer in (pushed(A), KvArrived(A), QuarantineCleared(B), KvSwapped(2, 0.1, is_out=True)):
        assert kv.told(0, answer).events == []
    events = kv.lost(1).events
    assert [type(event) for event in events] == [
        PushFinished, KvRefused, QuarantineCleared, KvSwapped
    ]  # fmt: skip
    assert isinstance(events[0], PushFinished)
    assert events[0].error is not None
    assert not kv.is_waiting
    (refused,) = kv.ordered(AwaitKv(B, BLOCKS, TAGS)).events
    assert isinstance(refused, KvRefused)
    assert kv.lost(1).events == []


class Order(NamedTuple):
    """Something that the core may want, and how a rank answers it."""

    action: KvAction
    answers: tuple[KvEvent, ...]


ORDERS: tuple[Callable[[TaskId], Order], ...] = (
    lambda task: Order(push(task), (pushed(task), failed(task, "no"))),
    lambda task: Order(
        AwaitKv(task, BLOCKS, TAGS), (KvArrived(task, "tcp"), KvRefused(task, "c", "m"))
    ),
    lambda task: Order(RevokeKv(task, BLOCKS), (QuarantineCleared(task),)),
    lambda task: Order(SwapOut(BLOCKS, BLOCKS), (KvSwapped(2, 0.1, is_out=True),)),
    lambda task: Order(SwapIn(BLOCKS, BLOCKS), (KvSwapped(2, 0.1, is_out=False),)),
    lambda task: Order(ExpectKv(BLOCKS, TAGS), ()),
    lambda task: Order(CancelPush(task, f"{task}@d"), ()),
)


class Ranks:
    """Ranks that answer in any order among each other, may be lost, and may repeat themselves."""

    def __init__(self, num_ranks: int) -> None:
        self.kv = RankKv(num_ranks)
        self.owed: list[deque[Order]] = [deque() for _ in range(num_ranks)]
        self.lost: set[int] = set()
        self.ordered: Counter[tuple[str, str]] = Counter()
        self.told: Counter[tuple[str, str]] = Counter()
        # Of pushes: those that every rank did well.
        self.awaited: set[TaskId] = set()
        self.revoked: set[TaskId] = set()
        self.refused: set[TaskId] = set()

    def order(self, order: Order) -> None:
        match order.action:
            case AwaitKv(task):
                if task in self.awaited | self.revoked | self.refused:
                    return  # the core does not
                self.awaited.add(task)
            case RevokeKv(task):
                if task in self.revoked:
                    return
                self.revoked.add(task)
                if task in self.awaited:
                    self.awaited.remove(task)
                    self.ordered["arrival", task] -= 1
            case _:
                pass
        kind = kind_of(order.action)
        if kind is not None:
            self.ordered[kind] += 1
        for rank, owed in enumerate(self.owed):
            if rank not in self.lost:
                owed.append(order)
        self.hear(self.kv.ordered(order.action))

    def answer(self, rank: int, choice: int) -> None:
        if rank in self.lost or not self.owed[rank]:
            return
        order = self.owed[rank].popleft()
        if order.answers:
            self.hear(self.kv.told(rank, order.answers[choice % len(order.answers)]))

    def lose(self, rank: int) -> None:
        self.lost.add(rank)
        self.owed[rank].clear()
        self.hear(self.kv.lost(rank))

    def hear(self, outcome: RankOutcome) -> None:
        self.kv.check_invariants()
        for rank, order in outcome.orders:
            assert isinstance(order, CancelPush)
            assert rank not in self.lost
        for event in outcome.events:
            kind = kind_of_event(event)
            self.told[kind] += 1
            assert self.told[kind] <= self.ordered[kind], f"{event} is told once too often"
            if isinstance(event, KvArrived | KvRefused):
                self.awaited.remove(event.task_id)
                self.refused.add(event.task_id)


def kind_of(action: KvAction) -> tuple[str, str] | None:
    match action:
        case Push(task):
            return "push", task
        case AwaitKv(task):
            return "arrival", task
        case RevokeKv(task):
            return "quarantine", task
        case SwapOut():
            return "swap", "out"
        case SwapIn():
            return "swap", "in"
        case _:
            return None


def kind_of_event(event: KvEvent) -> tuple[str, str]:
    match event:
        case PushFinished(task):
            return "push", task
        case KvArrived(task) | KvRefused(task):
            return "arrival", task
        case QuarantineCleared(task):
            return "quarantine", task
        case KvSwapped(_, _, is_out):
            return "swap", "out" if is_out else "in"


@settings(max_examples=300, deadline=None)
@given(
    num_ranks=st.integers(1, 4),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("order"), st.sampled_from(ORDERS), st.sampled_from((A, B))),
            st.tuples(st.just("answer"), st.integers(0, 3), st.integers(0, 1)),
            st.tuples(st.just("lose"), st.integers(0, 3), st.just(0)),
            st.tuples(st.just("babble"), st.integers(0, 3), st.sampled_from((A, B))),
        ),
        max_size=60,
    ),
)
def test_nothing_is_told_twice_and_nothing_is_forgotten(
    num_ranks: int, steps: list[tuple[object, ...]]
) -> None:
    ranks = Ranks(num_ranks)
    for step in steps:
        match step:
            case ("order", make, task):
                ranks.order(make(task))  # type: ignore[operator]
            case ("answer", int() as rank, int() as choice) if rank < num_ranks:
                ranks.answer(rank, choice)
            # A worker without ranks is none; rank 0 is this process.
            case ("lose", int() as rank, _) if 0 < rank < num_ranks:
                ranks.lose(rank)
            case ("babble", int() as rank, str() as task) if rank < num_ranks:
                # Late answers to what was over long ago.
                if task not in ranks.awaited and not ranks.kv.is_waiting:
                    assert ranks.kv.told(rank, KvArrived(TaskId(task), "tcp")).events == []
            case _:
                pass
    while any(ranks.owed):
        for rank in range(num_ranks):
            ranks.answer(rank, 0)
    assert not ranks.kv.is_waiting
    assert +ranks.told == +ranks.ordered
