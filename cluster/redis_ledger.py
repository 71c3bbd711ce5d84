"""The ledger in Redis or Valkey: one script per operation, so each is atomic among all routers."""

from collections.abc import Sequence
from typing import Literal, NoReturn, cast

from cluster.errors import (
    CapacityInUse,
    ClaimHeldElsewhere,
    HoldingGone,
    LedgerCorrupted,
    LedgerUnavailable,
    RouterLeaseLapsed,
    StaleAttempt,
)
from cluster.ledger import (
    NO_SHARES,
    Alternative,
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
    check_capacity,
    check_growth,
    check_incarnation,
    check_number,
    check_reserve,
    ttl_ms_of,
)
from cluster.ledger_records import (
    commit_too_large,
    incarnation_text,
    page_key,
    parse_holding,
    parse_router,
    parse_worker,
    stale_router,
    stale_worker,
)
from cluster.redis_connection import RedisConnection
from cluster.redis_scripts import Reply, Script, ScriptRunner, load_scripts
from runtime.clock import Clock
from scheduling.errors import TandemError
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

_OPERATIONS = (
    "set_capacity",
    "worker_lost",
    "renew",
    "reserve",
    "extend",
    "commit",
    "transfer",
    "release",
    "sweep",
    "snapshot",
)
_TABLES = ("workers", "holdings", "routers", "by_worker", "by_router", "ended", "ended_at")
# Calls in one pipeline, and releases in one script: keeps the server responsive to others.
_MAX_BATCH = 256


def ledger_keys(cluster: str) -> tuple[str, ...]:
    """The keys of one cluster's ledger. The hash tag keeps them in one Redis Cluster slot."""
    return tuple(f"{{tandem:{cluster}}}:ledger:{table}" for table in _TABLES)


class RedisLedger:
    """`Ledger` on a server that all routers and workers share.

    Leases run on the server's clock. A `clock` replaces it for simulated time; then every user
    of this ledger must bring the same one.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        cluster: str = "default",
        timeout_s: float = 1.0,
        ended_ttl_s: float = 60.0,
        forget_after_s: float = 3600.0,
        clock: Clock | None = None,
    ) -> None:
        self._runner = ScriptRunner(
            connection, _scripts(), ledger_keys(cluster), timeout_s, LedgerUnavailable
        )
        self._sweep_ages_ms = ttl_ms_of(ended_ttl_s), ttl_ms_of(forget_after_s)
        self._clock = clock

    async def set_capacity(
        self,
        worker: WorkerLife,
        num_blocks: int,
        shares: Shares = NO_SHARES,
        ttl_s: float | None = None,
    ) -> None:
        check_capacity(num_blocks, shares)
        check_incarnation(worker.incarnation)
        reply = await self._call(
            "set_capacity",
            worker.worker_id,
            incarnation_text(worker.incarnation),
            "" if ttl_s is None else ttl_ms_of(ttl_s),
            num_blocks,
            shares.prompt_reserve,
            shares.growth_reserve,
            shares.online_threshold,
        )
        match reply:
            case ["stale_worker"]:
                raise stale_worker(worker)
            case ["capacity_in_use", num_reserved]:
                raise CapacityInUse(worker.worker_id, num_blocks, num_reserved)

    async def worker_lost(self, worker: WorkerLife) -> tuple[Holding, ...]:
        check_incarnation(worker.incarnation)
        reply = await self._call(
            "worker_lost", worker.worker_id, incarnation_text(worker.incarnation)
        )
        return _holdings(reply[1])

    async def renew(self, router: RouterLife, ttl_s: float) -> Renewal:
        check_incarnation(router.incarnation)
        reply = await self._call("renew", *_owner(router), ttl_ms_of(ttl_s))
        if reply[0] == "stale_router":
            raise stale_router(router)
        return Renewal(cast(Literal["new", "renewed", "lapsed"], reply[1]), reply[2])

    async def reserve(self, router: RouterLife, request: ReserveRequest) -> Grant | Refusal:
        check_reserve(request)
        reply = await self._call("reserve", *_reserve_args(router, request))
        return _outcome(reply, router, request.claim)

    async def reserve_many(
        self, router: RouterLife, requests: Sequence[ReserveRequest]
    ) -> list[Grant | Refusal]:
        for request in requests:
            check_reserve(request)
        replies: list[Reply] = []
        for start in range(0, len(requests), _MAX_BATCH):
            calls = [
                (self._now(), *_reserve_args(router, request))
                for request in requests[start : start + _MAX_BATCH]
            ]
            replies += await self._runner.call_many("reserve", calls)
        return [
            _outcome(reply, router, request.claim)
            for reply, request in zip(replies, requests, strict=True)
        ]

    async def extend(self, router: RouterLife, growth: Growth) -> Grant | Refusal:
        check_growth(growth)
        reply = await self._call(
            "extend",
            *_owner(router),
            *_claim(growth.claim),
            growth.num_additional_blocks,
            growth.share,
            growth.sequence_number,
        )
        return _outcome(reply, router, growth.claim)

    async def commit(
        self, router: RouterLife, claim: Claim, num_blocks: int, sequence_number: int
    ) -> Grant:
        check_number("num_blocks", num_blocks)
        check_number("attempt", claim.attempt)
        check_number("sequence_number", sequence_number, at_least=1)
        reply = await self._call(
            "commit", *_owner(router), *_claim(claim), num_blocks, sequence_number
        )
        if reply[0] == "commit_too_large":
            raise commit_too_large(num_blocks, reply[1])
        return _grant(reply, router, claim)

    async def transfer(self, router: RouterLife, task_id: TaskId, attempt: int) -> Grant:
        check_number("attempt", attempt)
        reply = await self._call("transfer", *_owner(router), task_id, attempt)
        return _grant(reply, router, Claim(task_id, "decode", attempt))

    async def transfer_many(
        self, router: RouterLife, arrived: Sequence[tuple[TaskId, int]]
    ) -> list[Grant]:
        for _, attempt in arrived:
            check_number("attempt", attempt)
        replies: list[Reply] = []
        for start in range(0, len(arrived), _MAX_BATCH):
            calls = [
                (self._now(), *_owner(router), task_id, attempt)
                for task_id, attempt in arrived[start : start + _MAX_BATCH]
            ]
            replies += await self._runner.call_many("transfer", calls)
        return [
            _grant(reply, router, Claim(task_id, "decode", attempt))
            for reply, (task_id, attempt) in zip(replies, arrived, strict=True)
        ]

    async def release(self, router: RouterLife, release: Release) -> int:
        return await self.release_many(router, (release,))

    async def release_many(self, router: RouterLife, releases: Sequence[Release]) -> int:
        for release in releases:
            check_number("attempt", release.attempt)
        num_freed = 0
        for start in range(0, len(releases), _MAX_BATCH):
            args: list[str | int] = []
            for release in releases[start : start + _MAX_BATCH]:
                args += [release.task_id, release.attempt, release.leg or "both"]
            reply = await self._call("release", *_owner(router), *args)
            if reply[0] == "stale_router":
                raise stale_router(router)
            num_freed += reply[1]
        return num_freed

    async def sweep(self, max_holdings: int = 1000) -> Swept:
        check_number("max_holdings", max_holdings, at_least=1)
        reply = await self._call("sweep", max_holdings, *self._sweep_ages_ms)
        return Swept(_holdings(reply[1]), reply[2] == 1)

    async def snapshot(self, page: str | None = None, max_holdings: int = 1000) -> LedgerSnapshot:
        check_number("max_holdings", max_holdings, at_least=1)
        reply = await self._call("snapshot", page or "", max_holdings)
        now_ms, workers, routers, fields, has_more = reply[1:]
        holdings = _holdings(fields)
        return LedgerSnapshot(
            workers=tuple(parse_worker(*pair) for pair in sorted(_pairs(workers))),
            routers=tuple(
                parse_router(name, record, int(now_ms)) for name, record in sorted(_pairs(routers))
            ),
            holdings=holdings,
            next_page=page_key(holdings[-1]) if has_more else None,
        )

    def _now(self) -> str | int:
        return "" if self._clock is None else int(self._clock.now() * 1000)

    async def _call(self, operation: str, *args: str | int) -> Reply:
        return await self._runner.call(operation, (self._now(), *args))


def _scripts() -> dict[str, Script]:
    return load_scripts("prelude", _OPERATIONS)


def _owner(router: RouterLife) -> tuple[str, str]:
    check_incarnation(router.incarnation)
    return router.router_id, incarnation_text(router.incarnation)


def _claim(claim: Claim) -> tuple[str | int, ...]:
    return claim.task_id, claim.leg, claim.attempt


def _reserve_args(router: RouterLife, request: ReserveRequest) -> list[str | int]:
    args: list[str | int] = [
        *_owner(router),
        *_claim(request.claim),
        request.num_blocks,
        request.share,
        int(request.offline),
    ]
    for preference in request.preferences:
        args += [preference.worker_id, incarnation_text(preference.incarnation)]
    return args


def _outcome(reply: Reply, router: RouterLife, claim: Claim) -> Grant | Refusal:
    if reply[0] != "refusal":
        return _grant(reply, router, claim)
    return Refusal(
        tuple(
            Alternative(_worker(reply[i], reply[i + 1]), reply[i + 2])
            for i in range(1, len(reply), 3)
        )
    )


def _grant(reply: Reply, router: RouterLife, claim: Claim) -> Grant:
    if reply[0] != "grant":
        _raise_named(reply, router, claim)
    return Grant(_worker(reply[1], reply[2]), reply[3])


def _raise_named(reply: Reply, router: RouterLife, claim: Claim) -> NoReturn:
    errors: dict[str, TandemError] = {
        "stale_router": stale_router(router),
        "router_lease_lapsed": RouterLeaseLapsed(router.router_id),
        "holding_gone": HoldingGone(claim.task_id, claim.leg, claim.attempt),
        "stale_attempt": StaleAttempt(claim.task_id, claim.leg, claim.attempt),
    }
    if reply[0] == "claim_held_elsewhere":
        raise ClaimHeldElsewhere(claim.task_id, claim.leg, RouterId(reply[1]))
    raise errors.get(reply[0], LedgerCorrupted(f"a script answered {reply[0]!r}"))


def _worker(worker_id: str, incarnation: str) -> WorkerLife:
    return WorkerLife(WorkerId(worker_id), Incarnation(int(incarnation)))


def _pairs(flat: list[str]) -> list[tuple[str, str]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _holdings(flat: list[str]) -> tuple[Holding, ...]:
    """Fields and records, in the order of the index by worker (that of bytes)."""
    found = (parse_holding(field, record) for field, record in _pairs(flat))
    return tuple(sorted(found, key=lambda holding: page_key(holding).encode()))
