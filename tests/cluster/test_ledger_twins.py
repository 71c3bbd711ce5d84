"""Any sequence of steps has the same outcome in memory and on a real server, and the books add up.

Incarnations, attempts, sequence numbers and time are drawn freely, so repeated, late and stale
messages are most of what is tried.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cluster.ledger import (
    Claim,
    Growth,
    Ledger,
    LedgerSnapshot,
    Leg,
    Release,
    ReserveRequest,
    RouterLife,
    Share,
    Shares,
    WorkerLife,
)
from cluster.ledger_audit import check_invariants, read_whole
from cluster.memory_ledger import MemoryLedger
from cluster.redis_connection import connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_server import RedisServer
from runtime.clock import ManualClock
from scheduling.errors import TandemError
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

T = TypeVar("T")

# Small ranges, and the current life most often: otherwise few steps would meet each other.
incarnations = st.sampled_from([Incarnation(2**62 + i) for i in (0, 0, 0, 0, 0, 1)])
routers = st.builds(RouterLife, st.sampled_from([RouterId("r-0"), RouterId("r-1")]), incarnations)
workers = st.builds(WorkerLife, st.sampled_from([WorkerId("w-0"), WorkerId("w-1")]), incarnations)
tasks = st.sampled_from([TaskId("a/0"), TaskId("b/0")])
legs: st.SearchStrategy[Leg] = st.sampled_from(["prefill", "decode"])
shares: st.SearchStrategy[Share] = st.sampled_from(["general", "prompt", "growth"])
attempts = st.sampled_from([1, 1, 1, 2])
claims = st.builds(Claim, tasks, legs, attempts)
# None: the holding's own router.
meddlers = st.one_of(st.none(), st.none(), st.none(), routers)
blocks = st.integers(1, 6)
capacities = st.integers(4, 12)
thresholds = st.builds(Shares, st.integers(0, 2), st.integers(0, 2), st.integers(0, 4))
sequence_numbers = st.integers(1, 4)
picks = st.integers(0, 5)
lease_times = st.sampled_from([0.0, 5.0, 50.0, 500.0, 5000.0])
preferences = st.lists(workers, max_size=3).map(tuple)


class Twins(RuleBasedStateMachine):
    """Both ledgers get every step; anything that differs is a fault."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.books = LedgerSnapshot((), (), (), None)
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.connection = self.run(connect(url, timeout_s=20.0))
        self.memory = MemoryLedger(self.clock)
        self.redis = RedisLedger(
            self.connection, cluster=uuid.uuid4().hex, timeout_s=20.0, clock=self.clock
        )

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(step)

    def both(self, step: Callable[[Ledger], Awaitable[object]]) -> None:
        """Take the step on both and compare what came of it."""

        async def outcome(ledger: Ledger) -> object:
            try:
                return await step(ledger)
            except TandemError as error:
                return type(error), str(error)

        in_memory = self.run(outcome(self.memory))
        event(type(in_memory).__name__)
        assert in_memory == self.run(outcome(self.redis))

    def teardown(self) -> None:
        self.run(self.connection.close())
        self.loop.close()

    @invariant()
    def the_books_are_equal_and_add_up(self) -> None:
        self.books = self.run(read_whole(self.memory))
        check_invariants(self.books)
        assert self.books == self.run(read_whole(self.redis))

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 5.0, 61.0, 3600.0]), sweep=st.booleans())
    def time_passes(self, seconds: float, sweep: bool) -> None:
        self.clock.advance(seconds)
        if sweep:
            self.both(lambda ledger: ledger.sweep())

    @rule(
        worker=workers,
        num_blocks=capacities,
        shares=thresholds,
        ttl_s=st.one_of(st.none(), lease_times),
        is_lost=st.sampled_from([True, False, False]),
    )
    def a_worker_reports(
        self,
        worker: WorkerLife,
        num_blocks: int,
        shares: Shares,
        ttl_s: float | None,
        is_lost: bool,
    ) -> None:
        if is_lost:
            self.both(lambda ledger: ledger.worker_lost(worker))
            return
        self.both(lambda ledger: ledger.set_capacity(worker, num_blocks, shares, ttl_s))

    @rule(router=routers, ttl_s=lease_times)
    def renew(self, router: RouterLife, ttl_s: float) -> None:
        self.both(lambda ledger: ledger.renew(router, ttl_s))

    @rule(
        router=routers,
        claim=claims,
        preferences=preferences,
        num_blocks=blocks,
        share=shares,
        offline=st.booleans(),
    )
    def reserve(
        self,
        router: RouterLife,
        claim: Claim,
        preferences: tuple[WorkerLife, ...],
        num_blocks: int,
        share: Share,
        offline: bool,
    ) -> None:
        request = ReserveRequest(claim, preferences, num_blocks, share, offline)
        self.both(lambda ledger: ledger.reserve(router, request))

    @rule(router=routers, task_id=tasks, attempt=attempts, leg=st.one_of(st.none(), legs))
    def release(self, router: RouterLife, task_id: TaskId, attempt: int, leg: Leg | None) -> None:
        self.both(lambda ledger: ledger.release(router, Release(task_id, attempt, leg)))

    # The rules above seldom meet a live holding; those below choose from what is there.

    @precondition(lambda self: self.books.routers and self.books.workers)
    @rule(
        pick=picks,
        task_id=tasks,
        leg=legs,
        attempt=attempts,
        num_blocks=blocks,
        share=shares,
        offline=st.booleans(),
    )
    def reserve_among_the_living(
        self,
        pick: int,
        task_id: TaskId,
        leg: Leg,
        attempt: int,
        num_blocks: int,
        share: Share,
        offline: bool,
    ) -> None:
        lives = [book.worker for book in self.books.workers]
        router = self.books.routers[pick % len(self.books.routers)].router
        wanted = tuple(lives[pick % 2 :] + lives[: pick % 2])
        claim = Claim(task_id, leg, attempt)
        request = ReserveRequest(claim, wanted, num_blocks, share, offline)
        self.both(lambda ledger: ledger.reserve(router, request))

    @precondition(lambda self: self.books.holdings)
    @rule(pick=picks, meddler=meddlers, num_blocks=blocks, number=sequence_numbers, share=shares)
    def extend_a_holding(
        self, pick: int, meddler: RouterLife | None, num_blocks: int, number: int, share: Share
    ) -> None:
        holding = self.books.holdings[pick % len(self.books.holdings)]
        growth = Growth(holding.claim, num_blocks, number, share)
        self.both(lambda ledger: ledger.extend(meddler or holding.router, growth))

    @precondition(lambda self: self.books.holdings)
    @rule(pick=picks, meddler=meddlers, surplus=st.integers(-1, 3), number=sequence_numbers)
    def commit_a_holding(
        self, pick: int, meddler: RouterLife | None, surplus: int, number: int
    ) -> None:
        holding = self.books.holdings[pick % len(self.books.holdings)]
        router, num_blocks = meddler or holding.router, max(0, holding.num_blocks - surplus)
        self.both(lambda ledger: ledger.commit(router, holding.claim, num_blocks, number))

    @precondition(lambda self: self.books.holdings)
    @rule(pick=picks, meddler=meddlers)
    def transfer_a_holding(self, pick: int, meddler: RouterLife | None) -> None:
        holding = self.books.holdings[pick % len(self.books.holdings)]
        router, task_id = meddler or holding.router, holding.claim.task_id
        self.both(lambda ledger: ledger.transfer(router, task_id, holding.claim.attempt))

    @precondition(lambda self: self.books.holdings)
    @rule(pick=picks)
    def repeat_a_reservation(self, pick: int) -> None:
        holding = self.books.holdings[pick % len(self.books.holdings)]
        request = ReserveRequest(holding.claim, (), holding.num_blocks)
        self.both(lambda ledger: ledger.reserve(holding.router, request))


class PreparedTwins(Twins):
    """Begins with everybody alive, so that short runs get to the holdings."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        for name in ("w-0", "w-1"):
            self.a_worker_reports(
                WorkerLife(WorkerId(name), Incarnation(2**62)), 12, Shares(), None, False
            )
        for name in ("r-0", "r-1"):
            self.renew(RouterLife(RouterId(name), Incarnation(2**62)), 500.0)


def test_memory_and_server_never_differ(server: RedisServer) -> None:
    class OnServer(PreparedTwins):
        def __init__(self) -> None:
            super().__init__(server.url)

    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=50,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
