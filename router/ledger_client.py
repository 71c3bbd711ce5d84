"""Asks the ledger on the core's behalf, and stands in for it while it is gone.

The ledger is in the way of admission, never of tokens. Without it, a task goes to the first worker
of the core's preference, which refuses when its own pool is full; when the ledger is back, the
router starts a new ledger life and books again whatever its workers still hold.

Every Reserve and every Extend is answered exactly once, whatever happens: the core waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from cluster.errors import HoldingGone, LedgerUnavailable, RouterLeaseLapsed
from cluster.ledger import Claim as LedgerClaim
from cluster.ledger import (
    Grant,
    Growth,
    Ledger,
    LedgerSnapshot,
    Refusal,
    Release,
    ReserveRequest,
    RouterLife,
    Shares,
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
from router.leg import Leg
from router.reservation_batch import ReservationBatch
from runtime.logging import get_logger
from scheduling.errors import TandemError
from scheduling.ids import Incarnation, RouterId, TaskId

log = get_logger()

LedgerAction = Reserve | Extend | TransferHolding | ReleaseHolding
# An answer that is awaited, and with the life of this router that it was asked for.
_Asked = asyncio.Future[Grant | Refusal]
_Begun = tuple[RouterLife, _Asked]
# Pools of the connected workers, as each of them registers its own.
Pools = Iterable[tuple[WorkerLife, int, Shares]]
# Rounds of booking until the books agree with legs that go on changing meanwhile.
_MAX_REBOOK_ROUNDS = 20
# Transfers and releases wait so long for company; what is asked for takes them along at once.
_SETTLE_DELAY_S = 0.005
# How often a ledger that is away is looked for.
_AWAY_POLL_S = 0.5


class LedgerClient:
    """Performs ledger actions on the event loop; answers come as events, never at once."""

    def __init__(
        self,
        ledger: Ledger,
        router_id: RouterId,
        incarnation: Incarnation,
        lease_ttl_s: float,
        answer: Callable[[Event], None],
        held_legs: Callable[[], Iterable[Leg]],
        pools: Callable[[], Pools] = tuple,
    ) -> None:
        self.is_available = False
        self._ledger = ledger
        self._life = RouterLife(router_id, incarnation)
        self._lease_ttl_s = lease_ttl_s
        self._answer = answer
        self._held_legs = held_legs
        self._pools = pools
        self._tasks: set[asyncio.Task[None]] = set()
        self._reservations = ReservationBatch(ledger, self._spawn, self._freed_first)
        self._releases: list[Release] = []
        # Task and attempt of decode holdings whose KV has arrived.
        self._transfers: list[tuple[TaskId, int]] = []
        # When these are sent at the latest; None without any.
        self._settling: asyncio.TimerHandle | None = None
        # Of those that are to be sent, how many have not had their turn on the event loop.
        self._num_unbegun = 0
        # One renewal or reconciliation at a time.
        self._renewing = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Some operation has no answer yet."""
        return bool(self._tasks) or self._settling is not None

    async def start(self) -> None:
        """Take the lease; without an answer, start degraded."""
        await self._renew(self._life)

    async def keep_lease(self) -> None:
        """Renew and sweep until cancelled; notice the ledger's loss and return."""
        while True:
            pause_s = self._lease_ttl_s / 4
            await asyncio.sleep(pause_s if self.is_available else min(pause_s, _AWAY_POLL_S))
            await self._renew(self._life)
            if self.is_available:
                await self._guard(self._sweep())

    def perform(self, action: LedgerAction) -> None:
        """Begin one operation; never waits."""
        match action:
            case Reserve():
                self._reserve(action)
            case Extend():
                self._spawn(self._extend(action))
            case TransferHolding(claim):
                self._transfers.append((claim.task_id, claim.number))
                self._settle_soon()
            case ReleaseHolding(claim):
                self._releases.append(Release(claim.task_id, claim.number, claim.role))
                self._settle_soon()

    def look_again(self) -> None:
        """The store was away or lost its memory, as somebody else noticed."""
        self._spawn(self._renew(self._life))

    async def snapshot(self, max_holdings: int) -> LedgerSnapshot:
        """For the admin. Raises: LedgerUnavailable."""
        return await self._ledger.snapshot(max_holdings=max_holdings)

    async def close(self, timeout_s: float) -> None:
        """Let running operations end and give up the lease, with all that it still holds."""
        self._settle()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        if self.is_available:
            await self._guard(self._ledger.renew(self._life, 0.0))
            await self._guard(self._sweep())

    def _reserve(self, action: Reserve) -> None:
        """Every request passes here: only what goes wrong gets a task of its own."""
        request = ReserveRequest(
            claim=_claim(action.claim),
            preferences=tuple(WorkerLife(*life) for life in action.preferences),
            num_blocks=action.num_blocks,
            share=action.share,
        )
        if not self.is_available:
            self._spawn(self._reserve_late(action, request, None))
            return
        life = self._life
        asked = self._reservations.add(life, request)

        def answered(asked: _Asked) -> None:
            if asked.exception() is None and life == self._life:
                self._answer(_answer(action, asked.result()))
            else:
                self._spawn(self._reserve_late(action, request, (life, asked)))

        asked.add_done_callback(answered)

    async def _reserve_late(
        self, action: Reserve, request: ReserveRequest, begun: _Begun | None
    ) -> None:
        outcome = await self._ask(
            lambda life: self._reservations.add(life, request), request, begun
        )
        self._answer(_answer(action, outcome))

    async def _extend(self, action: Extend) -> None:
        growth = Growth(_claim(action.claim), action.num_blocks, action.sequence_number)
        await self._freed_first()
        outcome = await self._ask(lambda life: self._ledger.extend(life, growth), growth)
        granted = outcome is None or isinstance(outcome, Grant)
        self._answer(
            ExtensionAnswered(action.claim, action.num_blocks, granted, action.is_inherited)
        )

    async def _ask(
        self,
        operation: Callable[[RouterLife], Awaitable[Grant | Refusal]],
        what: ReserveRequest | Growth,
        begun: _Begun | None = None,
    ) -> Grant | Refusal | None:
        """The ledger's answer; None where it has none and the worker's own pool has to decide."""
        try:
            return await self._ask_twice(operation, what, begun)
        except Exception:  # a defect, here or in a script: without an answer the task hung for ever
            log.exception("ledger_defect", task_id=what.claim.task_id)
            return None

    async def _ask_twice(
        self,
        operation: Callable[[RouterLife], Awaitable[Grant | Refusal]],
        what: ReserveRequest | Growth,
        begun: _Begun | None,
    ) -> Grant | Refusal | None:
        refusal = Refusal(())
        for _ in range(2):
            if begun is None and not self.is_available:
                return None
            life, asked = begun or (self._life, operation(self._life))
            begun = None
            try:
                outcome = await asked
            except LedgerUnavailable as error:
                self._lost(error)
                return None
            except HoldingGone:
                # Begun while the ledger was away, or it could not be booked since: its worker
                # knows what it holds.
                return None
            except TandemError as error:
                task_id = what.claim.task_id
                log.warning("ledger_refused", task_id=task_id, code=error.code, error=str(error))
                if not isinstance(error, RouterLeaseLapsed) and life == self._life:
                    return refusal
                await self._renew(life)
            else:
                if life == self._life:
                    return outcome
                # The answer came from a life whose holdings are gone by now: ask again.
        return refusal

    async def _freed_first(self) -> None:
        """What is freed in the same breath may be what is asked for."""
        if self._transfers or self._releases:
            self._settle()
        if self._num_unbegun:
            await asyncio.sleep(0)  # the ledger carries out what it is asked first

    def _settle_soon(self) -> None:
        if self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(_SETTLE_DELAY_S, self._settle)

    def _settle(self) -> None:
        """Tell the ledger what has moved and what is free."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        transfers, self._transfers = self._transfers, []
        releases, self._releases = self._releases, []
        # First: a decode holding that is released is not there to be transferred to.
        if transfers:
            self._begin(self._ledger.transfer_many(self._life, transfers))
        if releases:
            self._begin(self._ledger.release_many(self._life, releases))

    def _begin(self, operation: Coroutine[Any, Any, object]) -> None:
        async def perform() -> None:
            self._num_unbegun -= 1
            await self._guard(operation)

        self._num_unbegun += 1
        self._spawn(perform())

    async def _sweep(self) -> None:
        while (swept := await self._ledger.sweep()).has_more:
            log.info("ledger_swept", num_holdings=len(swept.freed))

    async def _renew(self, life: RouterLife) -> None:
        """Extend the lease that was seen as `life`, or start a new life where it is gone."""
        async with self._renewing:
            if life != self._life and self.is_available:
                return  # somebody else did it meanwhile
            try:
                if self.is_available:
                    renewal = await self._ledger.renew(self._life, self._lease_ttl_s)
                    if renewal.status == "renewed":
                        return
                    # Swept meanwhile, or the ledger has forgotten everything: it was restarted
                    # so fast that nothing failed.
                    log.warning("ledger_forgot", status=renewal.status)
                await self._reconcile()
            except LedgerUnavailable as error:
                self._lost(error)
            except TandemError as error:
                self.is_available = False
                log.error("lease_failed", error=str(error))

    async def _reconcile(self) -> None:
        """A new life of this router frees all that the ledger has of it; then book what is real.

        Legs open and close while the ledger is being told, and nothing tells it of those: so it
        is told again until nothing changed in between.
        """
        self.is_available = False
        self._life = RouterLife(self._life.router_id, Incarnation(self._life.incarnation + 1))
        await self._ledger.renew(self._life, self._lease_ttl_s)
        await self._restore_pools()
        booked: dict[Claim, int] = {}
        for _ in range(_MAX_REBOOK_ROUNDS):
            held = {leg.claim: leg for leg in self._held_legs() if leg.worker_id is not None}
            changed = [leg for claim, leg in held.items() if booked.get(claim) != leg.num_blocks]
            gone = [
                Release(claim.task_id, claim.number, claim.role)
                for claim in booked
                if claim not in held
            ]
            if not changed and not gone:
                break
            booked = {claim: leg.num_blocks for claim, leg in held.items()}
            await self._rebook(changed, gone)
        self.is_available = True
        log.info("ledger_available", num_rebooked=len(booked))

    async def _restore_pools(self) -> None:
        """An empty ledger knows no workers until they say who they are; that may take a lease."""
        for worker, num_blocks, shares in self._pools():
            try:
                await self._ledger.set_capacity(worker, num_blocks, shares)
            except LedgerUnavailable:
                raise
            except TandemError as error:
                # Of another life by now: the worker itself has the last word.
                log.info("pool_not_restored", worker_id=worker.worker_id, error=str(error))

    async def _rebook(self, changed: list[Leg], gone: list[Release]) -> None:
        if gone:
            await self._ledger.release_many(self._life, gone)
        requests = [
            ReserveRequest(
                claim=_claim(leg.claim),
                preferences=(WorkerLife(leg.worker_id, leg.incarnation),),
                num_blocks=leg.num_blocks,
                share=GROWTH,
            )
            for leg in changed
            if leg.worker_id is not None and leg.incarnation is not None
        ]
        try:
            await self._ledger.reserve_many(self._life, requests)
        except LedgerUnavailable:
            raise
        except TandemError as error:
            # All were tried; one that cannot be booked is its worker's to bear.
            log.warning("rebooking_incomplete", error=str(error))

    async def _guard(self, operation: Coroutine[Any, Any, object]) -> None:
        """Await an operation whose failure only means that the ledger is gone or has moved on."""
        if not self.is_available:
            operation.close()
            return
        try:
            await operation
        except LedgerUnavailable as error:
            self._lost(error)
        except TandemError as error:
            log.info("ledger_operation_void", error=str(error))

    def _lost(self, error: LedgerUnavailable) -> None:
        if self.is_available:
            log.warning("ledger_unavailable", error=str(error))
        self.is_available = False

    def _spawn(self, operation: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("ledger_task_failed", exc_info=error)


def _claim(claim: Claim) -> LedgerClaim:
    return LedgerClaim(claim.task_id, claim.role, claim.number)


def _answer(action: Reserve, outcome: Grant | Refusal | None) -> ReservationAnswered:
    """`outcome` is None where the ledger has no answer: the worker decides."""
    if outcome is None:
        worker_id, incarnation = action.preferences[0]
        return ReservationAnswered(action.claim, worker_id, incarnation, is_booked=False)
    if isinstance(outcome, Grant):
        chosen = outcome.worker
        return ReservationAnswered(action.claim, chosen.worker_id, chosen.incarnation)
    return ReservationAnswered(action.claim, None)
