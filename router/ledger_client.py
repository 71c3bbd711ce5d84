"""Asks the ledger on the core's behalf, and stands in for it while it is gone.

The ledger is in the way of admission, never of tokens. Without it, a task goes to the first worker
of the core's preference, which refuses when its own pool is full; when the ledger is back, the
router starts a new ledger life and books again whatever its workers still hold.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from cluster.errors import ClusterError, LedgerUnavailable, RouterLeaseLapsed
from cluster.ledger import Claim as LedgerClaim
from cluster.ledger import (
    Grant,
    Growth,
    Ledger,
    LedgerSnapshot,
    Release,
    ReserveRequest,
    RouterLife,
    WorkerLife,
)
from router.events import (
    GROWTH,
    Claim,
    Event,
    Extend,
    ExtensionAnswered,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    TransferHolding,
)
from router.sequence import Leg
from runtime.logging import get_logger
from scheduling.ids import Incarnation, RouterId

log = get_logger()

LedgerAction = Reserve | Extend | TransferHolding | ReleaseHolding


class LedgerClient:
    """Performs ledger actions as tasks of the event loop; answers come as events."""

    def __init__(
        self,
        ledger: Ledger,
        router_id: RouterId,
        incarnation: Incarnation,
        lease_ttl_s: float,
        answer: Callable[[Event], None],
        held_legs: Callable[[], Iterable[Leg]],
    ) -> None:
        self.is_available = False
        self._ledger = ledger
        self._life = RouterLife(router_id, incarnation)
        self._lease_ttl_s = lease_ttl_s
        self._answer = answer
        self._held_legs = held_legs
        self._tasks: set[asyncio.Task[None]] = set()
        self._releases: list[Release] = []

    async def start(self) -> None:
        """Take the lease; without an answer, start degraded."""
        await self._renew()

    async def keep_lease(self) -> None:
        """Renew and sweep until cancelled; notice the ledger's loss and return."""
        while True:
            await asyncio.sleep(self._lease_ttl_s / 4)
            await self._renew()
            if self.is_available:
                await self._guard(self._sweep())

    def perform(self, action: LedgerAction) -> None:
        """Begin one operation; never waits."""
        match action:
            case Reserve():
                self._spawn(self._reserve(action))
            case Extend():
                self._spawn(self._extend(action))
            case TransferHolding(claim):
                self._spawn(
                    self._guard(self._ledger.transfer(self._life, claim.task_id, claim.number))
                )
            case ReleaseHolding(claim):
                if not self._releases:
                    self._spawn(self._release_all())
                self._releases.append(Release(claim.task_id, claim.number, claim.role))

    async def snapshot(self, max_holdings: int) -> LedgerSnapshot:
        """For the admin. Raises: LedgerUnavailable."""
        return await self._ledger.snapshot(max_holdings=max_holdings)

    async def close(self, timeout_s: float) -> None:
        """Let running operations end and give up the lease, with all that it still holds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        if self.is_available:
            await self._guard(self._ledger.renew(self._life, 0.0))
            await self._guard(self._sweep())

    async def _reserve(self, action: Reserve) -> None:
        chosen = action.preferences[0][0]
        if self.is_available:
            request = ReserveRequest(
                claim=_claim(action.claim),
                preferences=tuple(WorkerLife(*life) for life in action.preferences),
                num_blocks=action.num_blocks,
                share=action.share,
            )
            try:
                outcome = await self._ledger.reserve(self._life, request)
            except LedgerUnavailable as error:
                self._lost(error)
            except ClusterError as error:
                log.warning("reservation_failed", task_id=action.claim.task_id, error=str(error))
                self._answer(ReservationAnswered(action.claim, None))
                if isinstance(error, RouterLeaseLapsed):
                    await self._renew()
                return
            else:
                granted = outcome.worker.worker_id if isinstance(outcome, Grant) else None
                self._answer(ReservationAnswered(action.claim, granted))
                return
        self._answer(ReservationAnswered(action.claim, chosen))

    async def _extend(self, action: Extend) -> None:
        granted = True  # degraded: the worker's own pool decides
        if self.is_available:
            growth = Growth(_claim(action.claim), action.num_blocks, action.sequence_number)
            try:
                outcome = await self._ledger.extend(self._life, growth)
                granted = isinstance(outcome, Grant)
            except LedgerUnavailable as error:
                self._lost(error)
            except ClusterError as error:
                log.warning("extension_failed", task_id=action.claim.task_id, error=str(error))
                granted = False
        self._answer(ExtensionAnswered(action.claim, action.num_blocks, granted))

    async def _release_all(self) -> None:
        await asyncio.sleep(0)  # releases of one frame go together
        releases, self._releases = self._releases, []
        await self._guard(self._ledger.release_many(self._life, releases))

    async def _sweep(self) -> None:
        while (swept := await self._ledger.sweep()).has_more:
            log.info("ledger_swept", num_holdings=len(swept.freed))

    async def _renew(self) -> None:
        try:
            if not self.is_available:
                await self._reconcile()
            else:
                renewal = await self._ledger.renew(self._life, self._lease_ttl_s)
                if renewal.status == "lapsed":
                    await self._reconcile()
        except LedgerUnavailable as error:
            self._lost(error)
        except ClusterError as error:
            log.error("lease_failed", error=str(error))

    async def _reconcile(self) -> None:
        """A new life of this router frees all that the ledger has of it; then book what is real."""
        self._life = RouterLife(self._life.router_id, Incarnation(self._life.incarnation + 1))
        await self._ledger.renew(self._life, self._lease_ttl_s)
        held = [
            ReserveRequest(
                claim=_claim(leg.claim),
                preferences=(WorkerLife(leg.worker_id, leg.incarnation),),
                num_blocks=leg.num_blocks,
                share=GROWTH,
            )
            for leg in self._held_legs()
            if leg.worker_id is not None and leg.incarnation is not None
        ]
        outcomes = await self._ledger.reserve_many(self._life, held) if held else []
        num_refused = sum(not isinstance(outcome, Grant) for outcome in outcomes)
        self.is_available = True
        log.info("ledger_available", num_rebooked=len(held), num_refused=num_refused)

    async def _guard(self, operation: Coroutine[Any, Any, object]) -> None:
        """Await an operation whose failure only means that the ledger is gone or has moved on."""
        if not self.is_available:
            operation.close()
            return
        try:
            await operation
        except LedgerUnavailable as error:
            self._lost(error)
        except ClusterError as error:
            log.info("ledger_operation_void", error=str(error))

    def _lost(self, error: LedgerUnavailable) -> None:
        if self.is_available:
            log.warning("ledger_unavailable", error=str(error))
        self.is_available = False

    def _spawn(self, operation: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _claim(claim: Claim) -> LedgerClaim:
    return LedgerClaim(claim.task_id, claim.role, claim.number)
