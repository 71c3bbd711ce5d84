"""The ledger of one process: for tests, the simulator and a router that runs without Redis."""

from collections.abc import Sequence

from cluster.ledger import (
    NO_SHARES,
    Claim,
    Grant,
    Growth,
    Holding,
    LedgerSnapshot,
    Refusal,
    Release,
    Renewal,
    ReserveRequest,
    RouterLife,
    Shares,
    Swept,
    WorkerLife,
)
from cluster.ledger_book import LedgerBook
from runtime.clock import Clock
from scheduling.errors import TandemError
from scheduling.ids import TaskId


class MemoryLedger:
    """`Ledger` over a `LedgerBook`. Atomic because no method waits in the middle."""

    def __init__(self, clock: Clock, book: LedgerBook | None = None) -> None:
        self._clock = clock
        self._book = book if book is not None else LedgerBook()

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)

    async def set_capacity(
        self,
        worker: WorkerLife,
        num_blocks: int,
        shares: Shares = NO_SHARES,
        ttl_s: float | None = None,
    ) -> None:
        self._book.set_capacity(worker, num_blocks, shares, ttl_s, self._now_ms())

    async def worker_lost(self, worker: WorkerLife) -> tuple[Holding, ...]:
        return self._book.worker_lost(worker, self._now_ms())

    async def renew(self, router: RouterLife, ttl_s: float) -> Renewal:
        return self._book.renew(router, ttl_s, self._now_ms())

    async def reserve(self, router: RouterLife, request: ReserveRequest) -> Grant | Refusal:
        return self._book.reserve(router, request, self._now_ms())

    async def reserve_many(
        self, router: RouterLife, requests: Sequence[ReserveRequest]
    ) -> list[Grant | Refusal]:
        outcomes: list[Grant | Refusal] = []
        first_error: TandemError | None = None
        for request in requests:
            try:
                outcomes.append(self._book.reserve(router, request, self._now_ms()))
            except TandemError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return outcomes

    async def extend(self, router: RouterLife, growth: Growth) -> Grant | Refusal:
        return self._book.extend(router, growth, self._now_ms())

    async def commit(
        self, router: RouterLife, claim: Claim, num_blocks: int, sequence_number: int
    ) -> Grant:
        return self._book.commit(router, claim, num_blocks, sequence_number)

    async def transfer(self, router: RouterLife, task_id: TaskId, attempt: int) -> Grant:
        return self._book.transfer(router, task_id, attempt, self._now_ms())

    async def transfer_many(
        self, router: RouterLife, arrived: Sequence[tuple[TaskId, int]]
    ) -> list[Grant]:
        grants: list[Grant] = []
        first_error: TandemError | None = None
        for task_id, attempt in arrived:
            try:
                grants.append(self._book.transfer(router, task_id, attempt, self._now_ms()))
            except TandemError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return grants

    async def release(self, router: RouterLife, release: Release) -> int:
        return self._book.release(router, release, self._now_ms())

    async def release_many(self, router: RouterLife, releases: Sequence[Release]) -> int:
        return sum(self._book.release(router, release, self._now_ms()) for release in releases)

    async def sweep(self, max_holdings: int = 1000) -> Swept:
        return self._book.sweep(max_holdings, self._now_ms())

    async def snapshot(self, page: str | None = None, max_holdings: int = 1000) -> LedgerSnapshot:
        return self._book.snapshot(page, max_holdings, self._now_ms())
