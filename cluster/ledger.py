"""The ledger: which router may use how many KV blocks of which worker.

It counts blocks and never names them; the worker is the authority on its own pool. It stands in
the way of admission, never of tokens. Two implementations (`memory_ledger`, `redis_ledger`) keep
one contract, `tests/cluster/test_ledger_contract.py`.

Delivery: a message may be lost, repeated, or arrive after a later one (a call that timed out can
still wait in a socket). Hence every change carries numbers that make a repetition harmless and a
latecomer void: incarnations of router and worker, the `attempt` of a claim, and the
`sequence_number` of a change within an attempt.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from scheduling.errors import InvalidRequest
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId
from scheduling.value import value

Leg = Literal["prefill", "decode"]
LEGS: tuple[Leg, ...] = ("prefill", "decode")
Share = Literal["general", "prompt", "growth"]
SHARES: tuple[Share, ...] = ("general", "prompt", "growth")

# Numbers that a script computes with must be exact in a double.
MAX_NUMBER = 2**53 - 1
# Incarnations are only compared, so they may use the whole range that the wire has.
MAX_INCARNATION = 2**63 - 1


@value
class RouterLife:
    """One life of a router; the owner of holdings."""

    router_id: RouterId
    incarnation: Incarnation


@value
class WorkerLife:
    """One life of a worker; where blocks are."""

    worker_id: WorkerId
    incarnation: Incarnation


@value
class Shares:
    """Parts of one worker's capacity that only some reservations may enter, in blocks.

    There is one reserved number per worker; a share is the level up to which it may rise:
    general: capacity - prompt_reserve - growth_reserve; prompt: capacity - growth_reserve;
    growth: capacity. Offline holdings together stay within capacity - online_threshold as well.
    """

    prompt_reserve: int = 0
    growth_reserve: int = 0
    online_threshold: int = 0


NO_SHARES = Shares()


@value
class Claim:
    """One leg of one task, in one attempt to place it.

    A router draws attempts from one growing counter: a task that is placed again (preempted,
    migrated) takes a new one, a repetition of the same call keeps it. Both legs of a task may
    share an attempt; a decode attempt is never below that of the prefill it takes over.
    """

    task_id: TaskId
    leg: Leg
    attempt: int


@value
class ReserveRequest:
    """Blocks wanted for a claim, on the first of these workers that has room."""

    claim: Claim
    preferences: tuple[WorkerLife, ...]
    num_blocks: int
    share: Share = "general"
    # Work without a deadline: kept out of the online threshold.
    offline: bool = False


@value
class Growth:
    """More blocks for a claim that holds some, on the same worker."""

    claim: Claim
    num_additional_blocks: int
    # Larger than that of every earlier extend or commit of the attempt; the first is 1.
    sequence_number: int
    share: Share = "growth"


@value
class Release:
    """The end of an attempt, and of all attempts before it. Both legs where `leg` is None."""

    task_id: TaskId
    attempt: int
    leg: Leg | None = None


@value
class Grant:
    """The claim holds `num_blocks` in all on this worker."""

    worker: WorkerLife
    num_blocks: int


@value
class Alternative:
    """A worker that is alive and what this request could have there now."""

    worker: WorkerLife
    free_blocks: int


@value
class Refusal:
    """No room now. The live workers in the caller's order; unknown and stale ones are left out."""

    alternatives: tuple[Alternative, ...]


@value
class Renewal:
    """What became of a router's lease.

    new: this life holds nothing yet. renewed: all its holdings stand. lapsed: the lease had run
    out and the holdings were swept; reserve again what still runs.
    """

    status: Literal["new", "renewed", "lapsed"]
    # Blocks that the router's earlier life held and that are free now.
    num_freed_blocks: int


@value
class Holding:
    """Blocks of one worker that one router holds for one claim."""

    claim: Claim
    router: RouterLife
    worker: WorkerLife
    num_blocks: int
    state: Literal["reserved", "committed"]
    offline: bool


@value
class Swept:
    """What one sweep freed."""

    freed: tuple[Holding, ...]
    # The bound was reached: sweep again.
    has_more: bool


@value
class WorkerBook:
    """One worker's line in the ledger, in blocks."""

    worker: WorkerLife
    num_blocks: int
    shares: Shares
    num_reserved: int
    num_by_share: dict[Share, int]
    num_offline: int
    # Declared lost or its lease ran out: takes no reservations, and this life never will again.
    is_lost: bool


@value
class RouterLease:
    """One router's lease. `expires_in_s` is negative when it ran out and was not renewed."""

    router: RouterLife
    expires_in_s: float


@value
class LedgerSnapshot:
    """All workers and routers, sorted by id, and one page of holdings, by worker, leg and task."""

    workers: tuple[WorkerBook, ...]
    routers: tuple[RouterLease, ...]
    holdings: tuple[Holding, ...]
    # Give it to `snapshot` for the page after this one; None at the end.
    next_page: str | None


class Ledger(Protocol):
    """Reservations of KV blocks. Every operation is atomic and may be repeated.

    What one process begins one after the other is carried out in that order, answered or not,
    unless its connection breaks in between.

    All raise: LedgerUnavailable when there is no answer (the operation may have happened);
    StaleIncarnation for an earlier life, which changes nothing; InvalidRequest for a number out
    of range.
    """

    async def set_capacity(
        self,
        worker: WorkerLife,
        num_blocks: int,
        shares: Shares = NO_SHARES,
        ttl_s: float | None = None,
    ) -> None:
        """Register a worker's pool, or confirm it. A newer life drops all holdings of the older.

        With `ttl_s` the worker repeats the call to stay alive; without, only `worker_lost` ends
        its life. Raises: CapacityInUse; StaleIncarnation also for a life that was lost.
        """
        ...

    async def worker_lost(self, worker: WorkerLife) -> tuple[Holding, ...]:
        """End this life and free all its holdings, of every router. Returns what was freed.

        For a life that membership has given up, not for one broken connection.
        """
        ...

    async def renew(self, router: RouterLife, ttl_s: float) -> Renewal:
        """Take or extend the one lease of all of a router's holdings.

        A newer incarnation takes the name over and frees what the older life held.
        """
        ...

    async def reserve(self, router: RouterLife, request: ReserveRequest) -> Grant | Refusal:
        """Take the first preference with room. A claim that holds already gets the same grant.

        A larger attempt gives up what an earlier one still held.
        Raises: RouterLeaseLapsed, StaleAttempt, ClaimHeldElsewhere.
        """
        ...

    async def reserve_many(
        self, router: RouterLife, requests: Sequence[ReserveRequest]
    ) -> list[Grant | Refusal]:
        """`reserve` for each, in order, each atomic by itself, in few round trips.

        Raises: the first error, after all were tried.
        """
        ...

    async def extend(self, router: RouterLife, growth: Growth) -> Grant | Refusal:
        """Add blocks to a holding, all or none. The outcome of a sequence number is final.

        Raises: HoldingGone, StaleAttempt, RouterLeaseLapsed.
        """
        ...

    async def commit(
        self, router: RouterLife, claim: Claim, num_blocks: int, sequence_number: int
    ) -> Grant:
        """Confirm a holding at what is really used and free the rest; growth goes back first.

        Raises: HoldingGone, StaleAttempt; InvalidRequest above what is held.
        """
        ...

    async def transfer(self, router: RouterLife, task_id: TaskId, attempt: int) -> Grant:
        """The KV arrived: release the prefill holding and commit the decode one, in one step.

        `attempt` is that of the decode claim. Raises: HoldingGone without a decode holding.
        """
        ...

    async def transfer_many(
        self, router: RouterLife, arrived: Sequence[tuple[TaskId, int]]
    ) -> list[Grant]:
        """`transfer` for each task and attempt, each atomic by itself, in few round trips.

        Raises: the first error, after all were tried.
        """
        ...

    async def release(self, router: RouterLife, release: Release) -> int:
        """End an attempt; twice is harmless. Returns the number of blocks this call freed."""
        ...

    async def release_many(self, router: RouterLife, releases: Sequence[Release]) -> int:
        """`release` for each, in few round trips."""
        ...

    async def sweep(self, max_holdings: int = 1000) -> Swept:
        """Free holdings of routers and workers whose lease ran out. Any process may call it."""
        ...

    async def snapshot(self, page: str | None = None, max_holdings: int = 1000) -> LedgerSnapshot:
        """The books at one instant, with at most `max_holdings` holdings."""
        ...


def check_number(field: str, number: int, *, at_least: int = 0) -> None:
    """Raises: InvalidRequest when the number is negative or no longer exact in a script."""
    if not at_least <= number <= MAX_NUMBER:
        raise InvalidRequest(field, f"{number} is not in [{at_least}, 2**53); send a valid number")


def check_incarnation(incarnation: int) -> None:
    """Raises: InvalidRequest when the incarnation does not fit the wire."""
    if not 0 <= incarnation <= MAX_INCARNATION:
        raise InvalidRequest("incarnation", f"{incarnation} is not in [0, 2**63); use a valid one")


def check_capacity(num_blocks: int, shares: Shares) -> None:
    """Raises: InvalidRequest when the shares do not fit into the capacity."""
    check_number("num_blocks", num_blocks)
    check_number("prompt_reserve", shares.prompt_reserve)
    check_number("growth_reserve", shares.growth_reserve)
    check_number("online_threshold", shares.online_threshold)
    if shares.prompt_reserve + shares.growth_reserve > num_blocks:
        raise InvalidRequest(
            "shares", f"reserves exceed the capacity of {num_blocks} blocks; lower them"
        )
    if shares.online_threshold > num_blocks:
        raise InvalidRequest(
            "shares", f"online_threshold exceeds the capacity of {num_blocks} blocks; lower it"
        )


def check_reserve(request: ReserveRequest) -> None:
    """Raises: InvalidRequest for numbers out of range."""
    check_number("num_blocks", request.num_blocks, at_least=1)
    check_number("attempt", request.claim.attempt)


def check_growth(growth: Growth) -> None:
    """Raises: InvalidRequest for numbers out of range."""
    check_number("num_additional_blocks", growth.num_additional_blocks, at_least=1)
    check_number("attempt", growth.claim.attempt)
    check_number("sequence_number", growth.sequence_number, at_least=1)


def ttl_ms_of(ttl_s: float) -> int:
    """A lease in whole milliseconds, rounded up. Raises: InvalidRequest below zero or not finite.

    Zero is allowed: the lease ends now.
    """
    if not 0 <= ttl_s <= 1e9:
        raise InvalidRequest("ttl_s", f"{ttl_s} is not a duration; send seconds of at least 0")
    return -int(-ttl_s * 1000 // 1)
