"""Every interleaving of a small cluster: two routers, two workers, messages that come late or twice.

A breadth-first search over all states that the parts below can reach. Each router carries one task
through its life; the network keeps a message as long as it likes and may deliver it again; routers
give up waiting, crash and return; a worker crashes and returns. In every state the books add up,
each router holds exactly what it was told, and the end of the leases frees everything; in every
final state everything is free already.
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
PROGRAM = ("renew", "prefill", "decode", "extend", "commit", "transfer", "release")
DONE = len(PROGRAM)


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
    # Gives up by a fresh attempt, or by ending the task.
    tries_again: bool
    position: int = 0
    attempt: int = 1
    waits_for: Message | None = None
    held: tuple[tuple[Leg, Grant], ...] = ()

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


@dataclass(slots=True)
class State:
    book: LedgerBook
    routers: tuple[Router, ...]
    workers: tuple[WorkerLife, ...]
    in_flight: frozenset[Message]
    budget: Budget

    def key(self) -> object:
        return self.book.fingerprint(), self.routers, self.workers, self.in_flight, self.budget


def first_state(budget: Budget) -> State:
    book = LedgerBook()
    workers = tuple(WorkerLife(WorkerId(f"w-{i}"), Incarnation(1)) for i in range(2))
    for worker in workers:
        book.set_capacity(worker, NUM_BLOCKS, Shares(growth_reserve=1), None, 0)
    routers = tuple(
        Router(RouterLife(RouterId(f"r-{i}"), Incarnation(1)), tries_again=i == 0) for i in range(2)
    )
    return State(book, routers, workers, frozenset(), budget)


def successors(state: State) -> Iterator[State]:
    for index, router in enumerate(state.routers):
        if router.waits_for is None and router.position < DONE:
            step = PROGRAM[router.position]
            message = Message(router.life, step, router.attempt, state.workers)
            sent = with_router(state, index, replace(router, waits_for=message))
            sent.in_flight = state.in_flight | {message}
            yield sent
        if router.waits_for is not None and state.budget.give_ups:
            yield give_up(state, index)
        if router.position < DONE and state.budget.router_crashes:
            yield crash_router(state, index)
    for message in state.in_flight:
        yield deliver(state, message, keep=False)
        if state.budget.repeats:
            yield deliver(state, message, keep=True)
    if state.budget.worker_crashes:
        yield crash_worker(state)


def with_router(state: State, index: int, router: Router) -> State:
    routers = (*state.routers[:index], router, *state.routers[index + 1 :])
    return State(state.book, routers, state.workers, state.in_flight, state.budget)


def give_up(state: State, index: int) -> State:
    """The answer did not come in time; the message may still be under way."""
    router = state.routers[index]
    if router.position == 0 or PROGRAM[router.position] == "release":
        changed = replace(router, waits_for=None)
    elif router.tries_again:
        # A new attempt replaces the old one on each leg, so nothing is held for sure.
        changed = replace(router, waits_for=None, position=1, attempt=router.attempt + 1, held=())
    else:
        changed = replace(router, waits_for=None, position=DONE - 1)
    after = with_router(state, index, changed)
    after.budget = replace(state.budget, give_ups=state.budget.give_ups - 1)
    return after


def crash_router(state: State, index: int) -> State:
    router = state.routers[index]
    life = replace(router.life, incarnation=Incarnation(router.life.incarnation + 1))
    after = with_router(state, index, Router(life, router.tries_again))
    after.budget = replace(state.budget, router_crashes=state.budget.router_crashes - 1)
    return after


def crash_worker(state: State) -> State:
    old = state.workers[0]
    life = replace(old, incarnation=Incarnation(old.incarnation + 1))
    book = state.book.copy()
    book.set_capacity(life, NUM_BLOCKS, Shares(growth_reserve=1), None, 0)
    with pytest.raises(StaleIncarnation):
        book.set_capacity(old, NUM_BLOCKS, Shares(), None, 0)
    routers = tuple(
        replace(router, held=tuple(kept for kept in router.held if kept[1].worker != old))
        for router in state.routers
    )
    budget = replace(state.budget, worker_crashes=state.budget.worker_crashes - 1)
    return State(book, routers, (life, *state.workers[1:]), state.in_flight, budget)


def deliver(state: State, message: Message, *, keep: bool) -> State:
    book = state.book.copy()
    after = State(book, state.routers, state.workers, state.in_flight, state.budget)
    if keep:
        after.budget = replace(state.budget, repeats=state.budget.repeats - 1)
    else:
        after.in_flight = state.in_flight - {message}
    try:
        outcome = execute(book, message)
    except TandemError as error:
        assert book.fingerprint() == state.book.fingerprint(), f"{error} changed something"
        outcome = error
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
            if outcome.worker in message.workers:
                held[leg] = outcome
            if message.step == "transfer":
                held.pop("prefill", None)
        case Refusal() | TandemError():
            position = DONE - 1 if message.step not in ("extend", "release") else position
    if message.step == "release":
        held = {}
    return replace(router, waits_for=None, position=position, held=tuple(sorted(held.items())))


def check(state: State) -> None:
    snapshot = state.book.snapshot(None, 100, 0)
    check_invariants(snapshot)
    listed = {(h.router, h.claim.task_id, h.claim.leg): h for h in snapshot.holdings}
    for router in state.routers:
        is_ending = router.waits_for is not None or router.position >= DONE - 1
        for leg, grant in router.held:
            # While an answer is due the ledger may be ahead of the router.
            if is_ending or grant.worker not in state.workers:
                continue
            holding = listed[router.life, router.task_id, leg]
            assert Grant(holding.worker, holding.num_blocks) == grant
    ends = state.book.copy()
    ends.sweep(100, int(TTL_S * 1000))
    assert sum(book.num_reserved for book in ends.snapshot(None, 100, 0).workers) == 0
    if not state.in_flight and all(router.position == DONE for router in state.routers):
        assert sum(book.num_reserved for book in snapshot.workers) == 0, "blocks were leaked"


def explore(budget: Budget) -> tuple[int, int]:
    """Visit every reachable state. Returns their number and that of the final ones."""
    start = first_state(budget)
    seen, waiting, num_final = {start.key()}, deque([start]), 0
    while waiting:
        state = waiting.popleft()
        check(state)
        num_next = 0
        for after in successors(state):
            num_next += 1
            key = after.key()
            if key not in seen:
                seen.add(key)
                waiting.append(after)
        num_final += num_next == 0
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
    print(budget,num_states,num_final)
    assert num_states > 100
    assert num_final > 0
