"""Which worker holds blocks for which task, and what is promised on each worker."""

from router.events import Claim, ReleaseHolding, Role, SendCommand
from router.fleet import Fleet
from router.leg import Leg, LegState
from router.legs import LegBook
from router.testing import hello_of
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.messages import CancelTask

DECODE = WorkerId("decode-0")


def book_of(*names: str) -> tuple[Fleet, LegBook]:
    fleet = Fleet()
    for name in names:
        fleet.add(hello_of(name))
    return fleet, LegBook(fleet)


def leg_of(book: LegBook, task: str = "a/0~1", num_blocks: int = 3, role: Role = "decode") -> Leg:
    leg = Leg(book.next_claim(TaskId(task), role), num_blocks)
    leg.worker_id, leg.incarnation = WorkerId(f"{role}-0"), Incarnation(1)
    return leg


def promised(fleet: Fleet, worker_id: str) -> int:
    view = fleet.get(WorkerId(worker_id))
    assert view is not None
    return view.num_promised_blocks


def test_promises_follow_a_leg_to_the_worker_that_the_ledger_chose() -> None:
    fleet, book = book_of("decode-0", "decode-1")
    leg = leg_of(book)
    book.open(leg)
    assert (promised(fleet, "decode-0"), promised(fleet, "decode-1")) == (3, 0)
    book.settle(leg, WorkerId("decode-1"))
    assert (promised(fleet, "decode-0"), promised(fleet, "decode-1")) == (0, 3)
    book.grow(leg, 2)
    assert promised(fleet, "decode-1") == 5
    book.check_invariants()
    assert book.close(leg) == [ReleaseHolding(leg.claim)]
    assert promised(fleet, "decode-1") == 0
    book.remove(leg)
    assert promised(fleet, "decode-1") == 0, "removing twice is harmless"


def test_a_computed_prompt_is_no_backlog_any_more() -> None:
    fleet, book = book_of("prefill-0")
    leg = leg_of(book, role="prefill")
    leg.num_backlog_tokens = 40
    book.open(leg)
    view = fleet.get(WorkerId("prefill-0"))
    assert view is not None
    assert view.num_backlog_tokens == 40
    book.computed(leg)
    assert view.num_backlog_tokens == 0
    book.check_invariants()


def test_an_abandoned_leg_is_cancelled_once_and_kept_until_its_blocks_are_back() -> None:
    _, book = book_of("decode-0")
    leg = leg_of(book)
    book.open(leg)
    book.settle(leg, DECODE)
    cancel = SendCommand(DECODE, CancelTask(leg.task_id, "test"))
    assert book.abandon(leg, "test") == [cancel]
    assert book.abandon(leg, "test") == []
    assert book.get(leg.task_id, "decode") is leg
    assert book.held() == [leg]


def test_a_leg_that_the_ledger_was_asked_for_waits_for_the_answer() -> None:
    _, book = book_of("decode-0")
    leg = leg_of(book)
    book.open(leg)
    assert book.abandon(leg, "test") == []
    assert leg.is_abandoned
    assert leg.state is LegState.RESERVING
    assert book.held() == book.on_worker(DECODE) == []


def test_a_new_life_of_a_worker_has_none_of_the_old_promises() -> None:
    fleet, book = book_of("decode-0")
    leg = leg_of(book)
    book.open(leg)
    book.settle(leg, DECODE)
    fleet.add(hello_of("decode-0", life=2))
    book.close(leg)
    assert promised(fleet, "decode-0") == 0
    book.check_invariants()


def test_claims_grow() -> None:
    _, book = book_of()
    first, second = book.next_claim(TaskId("a"), "decode"), book.next_claim(TaskId("a"), "decode")
    assert second.number > first.number
    assert isinstance(first, Claim)
