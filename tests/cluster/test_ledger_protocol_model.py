"""Every interleaving of a small cluster, with messages that come late or twice.

A breadth-first search over all states that the parts below can reach. One router carries a task
through its whole life, another competes for the same blocks; the network keeps a message as long
as it likes and X
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from cluster.ledger import (
    Claim,
    Grant,
    Growth,
    Leg,
    Refusal,
    Release,
    ReserveRequest,
    RouterLife,
    Shares,
    WorkerLife,
)
from cluster.ledger_audit import check_invariants
from cluster.ledger_book import LedgerBook
from scheduling.errors import StaleIncarnation, TandemError
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

TTL_S = 1000.0
NUM_BLOCKS = 5
# The first step is always "renew" and the last one "release".
WHOLE_LIFE = ("renew", "prefill", "decode", "extend", "commit", "transfer", "release")
COMPETITOR = ("renew", "decode", "release")


@dataclass(frozen=True, slots=True)
class Message:
    router: RouterLife
    step: str
    attempt: int
    # The worker lives that the sender knew.
    workers: tuple[WorkerLife, ...] = ()


@dataclass(frozen=True, slots=True)
class Router:
    """One router's own knowledge. `held` is what its grants say, by leg."""

    life: RouterLife
    program: tuple[str, ...]
    # Gives up by a fresh attempt, or by ending the task.
    tries_again: bool
    position: int = 0
    attempt: int = 1
    waits_for: Message | None = None
    held: tuple[tuple[Leg, Grant], ...] = ()

    @property
    def step(self) -> str | None:
        """What it does next; None at the end."""
        return self.program[self.position] if self.position < len(self.program) else None

    @property
    def task_id(self) -> TaskId:
        return TaskId(f"{self.life.router_id}/0")


@dataclass(frozen=True, slots=True)
class Budget:
    """What may still go wrong."""

    repeats: int
    give_ups: int
    router_crashes: int
    worker_crashes: int


@dataclass(frozen=True, slots=True)
class State:
    # Index into `Books`.
    book: int
    routers: tuple[Router, ...]
    workers: tuple[WorkerLife, ...]
    in_flight: frozenset[Message]
    budget: Budget


class Books:
    """All different books that were met, and what each message does to each of them."""

    def __init__(self) -> None:
        self.books: list[LedgerBook] = []
        self._index_by_fingerprint: dict[str, int] = {}
        self._outcomes: dict[tuple[int, Message], tuple[int, object]] = {}

    def add(self, book: LedgerBook) -> int:
        """The index of this book, or of the equal one that was met before."""
        fingerprint = book.fingerprint()
        if fingerprint not in self._index_by_fingerprint:
            check_book(book)
            self._index_by_fingerprint[fingerprint] = len(self.books)
            self.books.append(book)
        return self._index_by_fingerprint[fingerprint]

    def deliver(self, index: int, message: Message) -> tuple[int, object]:
        """The book after the message, and the answer."""
        if (index, message) not in self._outcomes:
            book = self.books[index].copy()
            outcome: object
            try:
                outcome = execute(book, message)
            except TandemError as error:
                outcome = error
            after = self.add(book)
            if isinstance(outcome, TandemError):
                assert after == index, f"{outcome} changed something"
            self._outcomes[index, message] = after, outcome
        return self._outcomes[index, message]


def first_state(books: Books, budget: Budget) -> State:
    book = LedgerBook()
    workers = tuple(WorkerLife(WorkerId(f"w-{i}"), Incarnation(1)) for i in range(2))
    for worker in workers:
        book.set_capacity(worker, NUM_BLOCKS, Shares(growth_reserve=1), None, 0)
    routers = tuple(
        Router(RouterLife(RouterId(f"r-{i}"), Incarnation(1)), program, tries_again=i == 0)
        for i, program in enumerate((WHOLE_LIFE, COMPETITOR))
    )
    return State(books.add(book), routers, workers, frozenset(), budget)


def successors(books: Books, state: State) -> Iterator[State]:
    for index, router in enumerate(state.routers):
        if router.waits_for is None and router.step is not None:
            message = Message(router.life, router.step, router.attempt, state.workers)
            sent = with_router(state, index, replace(router, waits_for=message))
            yield replace(sent, in_flight=state.in_flight | {message})
        if router.waits_for is not None and state.budget.give_ups:
            yield give_up(state, index)
        if router.step is not None and state.budget.router_crashes:
            yield crash_router(state, index)
    for message in state.in_flight:
        yield deliver(books, state, message, keep=False)
        if state.budget.repeats:
            yield deliver(books, state, message, keep=True)
    if state.budget.worker_crashes:
        yield crash_worker(books, state)


def with_router(state: State, index: int, router: Router) -> State:
    routers = (*state.routers[:index], router, *state.routers[index + 1 :])
    return State(state.book, routers, state.workers, state.in_flight, state.budget)


def give_up(state: State, index: int) -> State:
    """The answer did not come in time; the message may still be under way."""
    router = state.routers[index]
    if router.step in ("renew", "release"):
        changed = replace(router, waits_for=None)
    elif router.tries_again:
        # A new attempt replaces the old one on each leg, so nothing is held for sure.
        changed = replace(router, waits_for=None, position=1, attempt=router.attempt + 1, held=())
    else:
        changed = replace(router, waits_for=None, position=len(router.program) - 1)
    budget = replace(state.budget, give_ups=state.budget.give_ups - 1)
    return replace(with_router(state, index, changed), budget=budget)


def crash_router(state: State, index: int) -> State:
    router = state.routers[index]
    life = replace(router.life, incarnation=Incarnation(router.life.incarnation + 1))
    after = with_router(state, index, Router(life, router.program, router.tries_again))
    budget = replace(state.budget, router_crashes=state.budget.router_crashes - 1)
    return replace(after, budget=budget)


def crash_worker(books: Books, state: State) -> State:
    old = state.workers[0]
    life = replace(old, incarnation=Incarnation(old.incarnation + 1))
    book = books.books[state.book].copy()
    book.set_capacity(life, NUM_BLOCKS, Shares(growth_reserve=1), None, 0)
    with pytest.raises(StaleIncarnation):
        book.set_capacity(old, NUM_BLOCKS, Shares(), None, 0)
    routers = tuple(
        replace(router, held=tuple(kept for kept in router.held if kept[1].worker != old))
        for router in state.routers
    )
    budget = replace(state.budget, worker_crashes=state.budget.worker_crashes - 1)
    return State(books.add(book), routers, (life, *state.workers[1:]), state.in_flight, budget)


def deliver(books: Books, state: State, message: Message, *, keep: bool) -> State:
    book, outcome = books.deliver(state.book, message)
    after = replace(state, book=book)
    if keep:
        budget = replace(state.budget, repeats=state.budget.repeats - 1)
        after = replace(after, budget=budget)
    else:
        after = replace(after, in_flight=state.in_flight - {message})
    for index, router in enumerate(state.routers):
        if router.waits_for == message:
            after = with_router(after, index, answered(router, message, outcome))
    return after


def execute(book: LedgerBook, message: Message) -> object:
    router, task_id = message.router, TaskId(f"{message.router.router_id}/0")
    decode = Claim(task_id, "decode", message.attempt)
    match message.step:
        case "renew":
            return book.renew(router, TTL_S, 0)
        case "prefill":
            claim = Claim(task_id, "prefill", message.attempt)
            return book.reserve(router, ReserveRequest(claim, message.workers, 2), 0)
        case "decode":
            wanted = tuple(reversed(message.workers))
            return book.reserve(router, ReserveRequest(decode, wanted, 2), 0)
        case "extend":
            return book.extend(router, Growth(decode, 2, 1), 0)
        case "commit":
            return book.commit(router, decode, 1, 2)
        case "transfer":
            return book.transfer(router, task_id, message.attempt, 0)
        case _:
            return book.release(router, Release(task_id, message.attempt), 0)


def answered(router: Router, message: Message, outcome: object) -> Router:
    held = dict(router.held)
    position = router.position + 1
    match outcome:
        case Grant():
            leg: Leg = "prefill" if message.step == "prefill" else "decode"
            held[leg] = outcome
            if message.step == "transfer":
                held.pop("prefill", None)
        case Refusal() | TandemError():
            if message.step not in ("extend", "release"):
                position = len(router.program) - 1
    if message.step == "release":
        held = {}
    return replace(router, waits_for=None, position=position, held=tuple(sorted(held.items())))


def check_book(book: LedgerBook) -> None:
    check_invariants(book.snapshot(None, 100, 0))
    ends = book.copy()
    ends.sweep(100, int(TTL_S * 1000))
    assert num_reserved(ends) == 0, "something outlives its holder's lease"


def num_reserved(book: LedgerBook) -> int:
    return sum(line.num_reserved for line in book.snapshot(None, 100, 0).workers)


def check_state(state: State, book: LedgerBook) -> None:
    snapshot = book.snapshot(None, 100, 0)
    listed = {(h.router, h.claim.task_id, h.claim.leg): h for h in snapshot.holdings}
    for router in state.routers:
        # While an answer is due the ledger may be ahead of the router.
        if router.waits_for is not None or router.step in ("release", None):
            continue
        for leg, grant in router.held:
            holding = listed[router.life, router.task_id, leg]
            assert Grant(holding.worker, holding.num_blocks) == grant
    if not state.in_flight and all(router.step is None for router in state.routers):
        assert num_reserved(book) == 0, "blocks were leaked"


def explore(budget: Budget) -> tuple[int, int]:
    """Visit every reachable state. Returns their number and that of the final ones."""
    books = Books()
    start = first_state(books, budget)
    seen, waiting, num_final = {start}, deque([start]), 0
    while waiting:
        state = waiting.popleft()
        check_state(state, books.books[state.book])
        num_final += not state.in_flight and all(router.step is None for router in state.routers)
        for after in successors(books, state):
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return len(seen), num_final


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param(Budget(2, 0, 0, 0), id="messages come twice"),
        pytest.param(Budget(0, 2, 0, 0), id="messages come late"),
        pytest.param(Budget(1, 1, 0, 0), id="messages come late and twice"),
        pytest.param(Budget(1, 0, 1, 0), id="a router crashes"),
        pytest.param(Budget(1, 0, 0, 1), id="a worker crashes"),
    ],
)
def test_no_interleaving_breaks_an_invariant_or_leaks_a_block(budget: Budget) -> None:
    num_states, num_final = explore(budget)
    assert num_states > 100
    assert num_final > 0
