"""The ledger's rules as a plain object: the time is an argument, nothing waits, nothing is sent.

`memory_ledger` puts it behind the async protocol, the simulator may use it directly, and
`cluster/lua/` says the same for Redis, script by method. All instants are milliseconds of one
clock. A raised error means that nothing changed.
"""

from collections.abc import Iterable
from dataclasses import replace

from cluster.errors import (
    CapacityInUse,
    ClaimHeldElsewhere,
    HoldingGone,
    RouterLeaseLapsed,
    StaleAttempt,
)
from cluster.ledger import (
    LEGS,
    SHARES,
    Alternative,
    Claim,
    Grant,
    Growth,
    Holding,
    LedgerSnapshot,
    Leg,
    Refusal,
    Release,
    Renewal,
    ReserveRequest,
    RouterLease,
    RouterLife,
    Share,
    Shares,
    Swept,
    WorkerLife,
    check_capacity,
    check_growth,
    check_incarnation,
    check_number,
    check_reserve,
    ttl_ms_of,
)
from cluster.ledger_records import commit_too_large, page_key, stale_router, stale_worker
from cluster.ledger_state import HoldingState, RouterState, WorkerState
from scheduling.ids import RouterId, TaskId, WorkerId

_Key = tuple[TaskId, Leg]
# Attempts that ended, per router life, so that a late `reserve` of one finds the door closed.
_EndedKey = tuple[RouterLife, TaskId, Leg | None]


class LedgerBook:
    """All holdings of one cluster; see `cluster.ledger.Ledger` for what each method means."""

    def __init__(self, *, ended_ttl_ms: int = 60_000, forget_after_ms: int = 3_600_000) -> None:
        # Longer than a message can be late.
        self._ended_ttl_ms = ended_ttl_ms
        # How long the name of a dead router or worker keeps its last incarnation.
        self._forget_after_ms = forget_after_ms
        self._workers: dict[WorkerId, WorkerState] = {}
        self._routers: dict[RouterId, RouterState] = {}
        self._holdings: dict[_Key, HoldingState] = {}
        self._ended: dict[_EndedKey, tuple[int, int]] = {}

    def copy(self) -> "LedgerBook":
        """An independent book with the same lines: for a search through possible futures."""
        twin = LedgerBook(ended_ttl_ms=self._ended_ttl_ms, forget_after_ms=self._forget_after_ms)
        twin._workers = {key: worker.copy() for key, worker in self._workers.items()}
        twin._routers = {key: replace(router) for key, router in self._routers.items()}
        twin._holdings = {key: holding.copy() for key, holding in self._holdings.items()}
        twin._ended = dict(self._ended)
        return twin

    def fingerprint(self) -> str:
        """Equal for two books only if they will answer alike for ever."""
        tables = (self._workers, self._routers, self._holdings, self._ended)
        return repr([sorted(table.items(), key=repr) for table in tables])

    # --- workers ------------------------------------------------------------------------------

    def set_capacity(
        self, life: WorkerLife, num_blocks: int, shares: Shares, ttl_s: float | None, now_ms: int
    ) -> None:
        check_capacity(num_blocks, shares)
        check_incarnation(life.incarnation)
        expires_at_ms = None if ttl_s is None else now_ms + ttl_ms_of(ttl_s)
        worker = self._workers.get(life.worker_id)
        if worker is not None and worker.incarnation > life.incarnation:
            raise stale_worker(life)
        if worker is None or worker.incarnation < life.incarnation:
            self._drop_all(self._on_worker(life.worker_id))
            self._workers[life.worker_id] = WorkerState(
                life.incarnation, num_blocks, shares, expires_at_ms
            )
            return
        if worker.is_lost:
            raise stale_worker(life)
        if worker.num_reserved > num_blocks:
            raise CapacityInUse(life.worker_id, num_blocks, worker.num_reserved)
        worker.num_blocks, worker.shares = num_blocks, shares
        worker.expires_at_ms = expires_at_ms

    def worker_lost(self, life: WorkerLife, now_ms: int) -> tuple[Holding, ...]:
        check_incarnation(life.incarnation)
        worker = self._workers.get(life.worker_id)
        if worker is None or worker.incarnation != life.incarnation or worker.is_lost:
            return ()
        worker.is_lost, worker.expires_at_ms = True, now_ms
        return self._drop_all(self._on_worker(life.worker_id))

    # --- routers ------------------------------------------------------------------------------

    def renew(self, life: RouterLife, ttl_s: float, now_ms: int) -> Renewal:
        check_incarnation(life.incarnation)
        expires_at_ms = now_ms + ttl_ms_of(ttl_s)
        self._refuse_stale(life)
        router = self._routers.get(life.router_id)
        if router is None or router.incarnation < life.incarnation:
            freed = self._drop_all(self._of_router(life.router_id))
            self._routers[life.router_id] = RouterState(life.incarnation, expires_at_ms)
            return Renewal("new", sum(holding.num_blocks for holding in freed))
        was_swept, router.is_swept = router.is_swept, False
        router.expires_at_ms = expires_at_ms
        return Renewal("lapsed" if was_swept else "renewed", 0)

    # --- holdings -----------------------------------------------------------------------------

    def reserve(self, life: RouterLife, request: ReserveRequest, now_ms: int) -> Grant | Refusal:
        check_reserve(request)
        self._refuse_lapsed(life, now_ms)
        claim = request.claim
        key = (claim.task_id, claim.leg)
        held = self._holdings.get(key)
        if held is not None:
            if held.router != life:
                raise ClaimHeldElsewhere(claim.task_id, claim.leg, held.router.router_id)
            if held.attempt == claim.attempt:
                return Grant(held.worker, held.num_blocks)
        overtaken_by = held.attempt if held is not None else self._last_ended(life, claim)
        if claim.attempt <= overtaken_by:
            raise StaleAttempt(claim.task_id, claim.leg, claim.attempt)
        if held is not None:
            self._drop(key)
        alternatives = []
        for preference in request.preferences:
            worker = self._workers.get(preference.worker_id)
            if worker is None or worker.incarnation != preference.incarnation:
                continue
            if not worker.is_alive(now_ms):
                continue
            free = worker.free_for(request.share, request.offline)
            if free >= request.num_blocks:
                holding = HoldingState(claim.attempt, life, preference, request.offline)
                self._holdings[key] = holding
                self._grow(holding, worker, request.share, request.num_blocks)
                return Grant(preference, request.num_blocks)
            alternatives.append(Alternative(preference, free))
        return Refusal(tuple(alternatives))

    def extend(self, life: RouterLife, growth: Growth, now_ms: int) -> Grant | Refusal:
        check_growth(growth)
        self._refuse_lapsed(life, now_ms)
        holding = self._held(life, growth.claim)
        worker = self._workers[holding.worker.worker_id]
        is_alive = worker.is_alive(now_ms)
        free = worker.free_for(growth.share, holding.offline) if is_alive else 0
        if self._is_repetition(holding, growth.claim, growth.sequence_number):
            is_granted = holding.was_granted
        else:
            holding.last_sequence_number = growth.sequence_number
            is_granted = holding.was_granted = free >= growth.num_additional_blocks
            if is_granted:
                self._grow(holding, worker, growth.share, growth.num_additional_blocks)
        if is_granted:
            return Grant(holding.worker, holding.num_blocks)
        return Refusal((Alternative(holding.worker, free),) if is_alive else ())

    def commit(
        self, life: RouterLife, claim: Claim, num_blocks: int, sequence_number: int
    ) -> Grant:
        check_number("num_blocks", num_blocks)
        check_number("attempt", claim.attempt)
        check_number("sequence_number", sequence_number, at_least=1)
        self._refuse_stale(life)
        holding = self._held(life, claim)
        if not self._is_repetition(holding, claim, sequence_number):
            surplus = holding.num_blocks - num_blocks
            if surplus < 0:
                raise commit_too_large(num_blocks, holding.num_blocks)
            holding.last_sequence_number, holding.was_granted = sequence_number, True
            holding.is_committed = True
            self._shrink(holding, surplus)
        return Grant(holding.worker, holding.num_blocks)

    def transfer(self, life: RouterLife, task_id: TaskId, attempt: int, now_ms: int) -> Grant:
        check_number("attempt", attempt)
        self._refuse_stale(life)
        decode = self._held(life, Claim(task_id, "decode", attempt))
        self._end(life, Release(task_id, attempt, "prefill"), now_ms)
        decode.is_committed = True
        return Grant(decode.worker, decode.num_blocks)

    def release(self, life: RouterLife, release: Release, now_ms: int) -> int:
        check_number("attempt", release.attempt)
        self._refuse_stale(life)
        return self._end(life, release, now_ms)

    # --- the books ----------------------------------------------------------------------------

    def sweep(self, max_holdings: int, now_ms: int) -> Swept:
        check_number("max_holdings", max_holdings, at_least=1)
        freed: list[Holding] = []
        has_more = False
        for router_id, router in sorted(self._routers.items()):
            if router.expires_at_ms > now_ms:
                continue
            keys = self._of_router(router_id)
            freed += self._drop_all(keys[: max_holdings - len(freed)])
            router.is_swept = not self._of_router(router_id)
            has_more |= not router.is_swept
            if router.is_swept and router.expires_at_ms + self._forget_after_ms <= now_ms:
                del self._routers[router_id]
        for worker_id, worker in sorted(self._workers.items()):
            if worker.expires_at_ms is None or worker.expires_at_ms > now_ms:
                continue
            keys = self._on_worker(worker_id)
            freed += self._drop_all(keys[: max_holdings - len(freed)])
            worker.is_lost = not self._on_worker(worker_id)
            has_more |= not worker.is_lost
            if worker.is_lost and worker.expires_at_ms + self._forget_after_ms <= now_ms:
                del self._workers[worker_id]
        self._forget_ended(now_ms)
        return Swept(tuple(sorted(freed, key=_order)), has_more)

    def snapshot(self, page: str | None, max_holdings: int, now_ms: int) -> LedgerSnapshot:
        check_number("max_holdings", max_holdings, at_least=1)
        after = b"" if page is None else page.encode()
        holdings = sorted(
            (holding.view(*key) for key, holding in self._holdings.items()), key=_order
        )
        rest = [holding for holding in holdings if _order(holding) > after]
        listed = tuple(rest[:max_holdings])
        return LedgerSnapshot(
            workers=tuple(
                worker.book(worker_id) for worker_id, worker in sorted(self._workers.items())
            ),
            routers=tuple(
                RouterLease(
                    RouterLife(router_id, router.incarnation),
                    (router.expires_at_ms - now_ms) / 1000,
                )
                for router_id, router in sorted(self._routers.items())
            ),
            holdings=listed,
            next_page=page_key(listed[-1]) if len(rest) > len(listed) else None,
        )

    # --- rules --------------------------------------------------------------------------------

    def _refuse_stale(self, life: RouterLife) -> None:
        router = self._routers.get(life.router_id)
        if router is not None and router.incarnation > life.incarnation:
            raise stale_router(life)

    def _refuse_lapsed(self, life: RouterLife, now_ms: int) -> None:
        self._refuse_stale(life)
        router = self._routers.get(life.router_id)
        if (
            router is None
            or router.incarnation < life.incarnation
            or router.is_swept
            or router.expires_at_ms <= now_ms
        ):
            raise RouterLeaseLapsed(life.router_id)

    def _held(self, life: RouterLife, claim: Claim) -> HoldingState:
        holding = self._holdings.get((claim.task_id, claim.leg))
        if holding is None or holding.router != life or holding.attempt != claim.attempt:
            raise HoldingGone(claim.task_id, claim.leg, claim.attempt)
        return holding

    def _is_repetition(self, holding: HoldingState, claim: Claim, sequence_number: int) -> bool:
        if sequence_number < holding.last_sequence_number:
            raise StaleAttempt(claim.task_id, claim.leg, claim.attempt)
        return sequence_number == holding.last_sequence_number

    def _last_ended(self, life: RouterLife, claim: Claim) -> int:
        return max(
            self._ended.get((life, claim.task_id, leg), (-1, 0))[0] for leg in (claim.leg, None)
        )

    def _end(self, life: RouterLife, release: Release, now_ms: int) -> int:
        num_freed = 0
        for leg in LEGS if release.leg is None else (release.leg,):
            key = (release.task_id, leg)
            holding = self._holdings.get(key)
            if holding is None or holding.router != life:
                continue
            if holding.attempt <= release.attempt:
                num_freed += self._drop(key).num_blocks
        ended_key = (life, release.task_id, release.leg)
        last_attempt = max(release.attempt, self._ended.get(ended_key, (-1, 0))[0])
        self._ended[ended_key] = (last_attempt, now_ms)
        return num_freed

    def _forget_ended(self, now_ms: int) -> None:
        oldest_ms = now_ms - self._ended_ttl_ms
        self._ended = {key: ended for key, ended in self._ended.items() if ended[1] > oldest_ms}

    def _grow(
        self, holding: HoldingState, worker: WorkerState, share: Share, num_blocks: int
    ) -> None:
        holding.num_by_share[share] += num_blocks
        worker.num_by_share[share] += num_blocks
        worker.num_offline += num_blocks if holding.offline else 0

    def _shrink(self, holding: HoldingState, num_blocks: int) -> None:
        worker = self._workers[holding.worker.worker_id]
        worker.num_offline -= num_blocks if holding.offline else 0
        for share in reversed(SHARES):
            part = min(num_blocks, holding.num_by_share[share])
            holding.num_by_share[share] -= part
            worker.num_by_share[share] -= part
            num_blocks -= part

    def _on_worker(self, worker_id: WorkerId) -> list[_Key]:
        return sorted(k for k, h in self._holdings.items() if h.worker.worker_id == worker_id)

    def _of_router(self, router_id: RouterId) -> list[_Key]:
        return sorted(k for k, h in self._holdings.items() if h.router.router_id == router_id)

    def _drop_all(self, keys: Iterable[_Key]) -> tuple[Holding, ...]:
        return tuple(sorted((self._drop(key) for key in keys), key=_order))

    def _drop(self, key: _Key) -> Holding:
        holding = self._holdings.pop(key)
        view = holding.view(*key)
        self._shrink(holding, holding.num_blocks)
        return view


def _order(holding: Holding) -> bytes:
    return page_key(holding).encode()
