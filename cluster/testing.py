"""For tests: a ledger that goes away, answers late, or refuses on demand."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.errors import LedgerUnavailable
from cluster.ledger import (
    NO_SHARES,
    Claim,
    Grant,
    Growth,
    Holding,
    Ledger,
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
from scheduling.ids import TaskId

Result = TypeVar("Result")


@dataclass(slots=True)
class FaultyLedger:
    """A `Ledger` in front of another one."""

    inner: Ledger
    # No operation has an answer.
    is_down: bool = False
    # Raised once by the next operation of that name, instead of doing it.
    error_by_operation: dict[str, Exception] = field(default_factory=dict)
    # An operation of that name is done, and its answer waits for the event.
    answer_waits_for: dict[str, asyncio.Event] = field(default_factory=dict)
    # Names of the operations, in the order in which they were called.
    calls: list[str] = field(default_factory=list)

    async def _through(self, name: str, operation: Awaitable[Result]) -> Result:
        self.calls.append(name)
        problem: Exception | None = self.error_by_operation.pop(name, None)
        if self.is_down:
            problem = LedgerUnavailable(name, "test", "is down")
        if problem is not None:
            if asyncio.iscoroutine(operation):
                operation.close()
            raise problem
        result = await operation
        if name in self.answer_waits_for:
            await self.answer_waits_for[name].wait()
            if self.is_down:
                raise LedgerUnavailable(name, "test", "went down")
        return result

    async def set_capacity(
        self,
        worker: WorkerLife,
        num_blocks: int,
        shares: Shares = NO_SHARES,
        ttl_s: float | None = None,
    ) -> None:
        await self._through(
            "set_capacity", self.inner.set_capacity(worker, num_blocks, shares, ttl_s)
        )

    async def worker_lost(self, worker: WorkerLife) -> tuple[Holding, ...]:
        return await self._through("worker_lost", self.inner.worker_lost(worker))

    async def renew(self, router: RouterLife, ttl_s: float) -> Renewal:
        return await self._through("renew", self.inner.renew(router, ttl_s))

    async def reserve(self, router: RouterLife, request: ReserveRequest) -> Grant | Refusal:
        return await self._through("reserve", self.inner.reserve(router, request))

    async def reserve_many(
        self, router: RouterLife, requests: Sequence[ReserveRequest]
    ) -> list[Grant | Refusal]:
        return await self._through("reserve_many", self.inner.reserve_many(router, requests))

    async def extend(self, router: RouterLife, growth: Growth) -> Grant | Refusal:
        return await self._through("extend", self.inner.extend(router, growth))

    async def commit(
        self, router: RouterLife, claim: Claim, num_blocks: int, sequence_number: int
    ) -> Grant:
        return await self._through(
            "commit", self.inner.commit(router, claim, num_blocks, sequence_number)
        )

    async def transfer(self, router: RouterLife, task_id: TaskId, attempt: int) -> Grant:
        return await self._through("transfer", self.inner.transfer(router, task_id, attempt))

    async def transfer_many(
        self, router: RouterLife, arrived: Sequence[tuple[TaskId, int]]
    ) -> list[Grant]:
        return await self._through("transfer_many", self.inner.transfer_many(router, arrived))

    async def release(self, router: RouterLife, release: Release) -> int:
        return await self._through("release", self.inner.release(router, release))

    async def release_many(self, router: RouterLife, releases: Sequence[Release]) -> int:
        return await self._through("release_many", self.inner.release_many(router, releases))

    async def sweep(self, max_holdings: int = 1000) -> Swept:
        return await self._through("sweep", self.inner.sweep(max_holdings))

    async def snapshot(self, page: str | None = None, max_holdings: int = 1000) -> LedgerSnapshot:
        return await self._through("snapshot", self.inner.snapshot(page, max_holdings))
