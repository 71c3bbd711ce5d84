"""Who belongs to the cluster: workers and routers register under a lease and watch each other.

A member's lease is renewed by registering again with the same record, so a store that lost its
memory fills up by itself. When the store is away, the last known members stay.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cluster.errors import MembershipUnavailable
from cluster.process_identity import ProcessIdentity
from runtime.clock import Clock
from scheduling.errors import StaleIncarnation
from scheduling.ids import Incarnation, RouterId, WorkerId

Role = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a router must know of a worker before it dials it."""

    worker_id: WorkerId
    incarnation: Incarnation
    role: Role
    # host:port of its gRPC service.
    address: str
    num_blocks: int
    block_size: int
    # Equal on two workers that may exchange KV.
    compatibility: str
    model: str
    # Equal to the router's own configuration and tokenizer of the model.
    model_fingerprint: str
    # Wall clock, for people.
    started_at_ns: int
    process: ProcessIdentity

    @property
    def name(self) -> str:
        """Unique among all members."""
        return f"worker {self.worker_id}"


@dataclass(frozen=True, slots=True)
class RouterRecord:
    """One router replica."""

    router_id: RouterId
    incarnation: Incarnation
    # host:port of its public gRPC service.
    address: str
    model_fingerprint: str
    started_at_ns: int
    process: ProcessIdentity

    @property
    def name(self) -> str:
        """Unique among all members."""
        return f"router {self.router_id}"


MemberRecord = WorkerRecord | RouterRecord


@dataclass(frozen=True, slots=True)
class Listing:
    """All members whose lease stands, sorted by name."""

    members: tuple[MemberRecord, ...]
    # Another value means that the store forgot everything in between.
    epoch: str
    # By the clock that leases end by, which somebody may set; None: nobody can.
    store_now_s: float | None = None

    @property
    def workers(self) -> tuple[WorkerRecord, ...]:
        return tuple(member for member in self.members if isinstance(member, WorkerRecord))

    @property
    def routers(self) -> tuple[RouterRecord, ...]:
        return tuple(member for member in self.members if isinstance(member, RouterRecord))


@dataclass(frozen=True, slots=True)
class MemberJoined:
    record: MemberRecord


@dataclass(frozen=True, slots=True)
class MemberRestarted:
    """The same name, another life: nothing of the previous one is valid."""

    record: MemberRecord
    previous: MemberRecord


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """It deregistered, or its lease ran out."""

    record: MemberRecord


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store does not answer: degraded, the members stay as they were."""

    problem: str


@dataclass(frozen=True, slots=True)
class StoreRegained:
    """The store answers again; the ledger has to be reconciled."""


MembershipChange = MemberJoined | MemberRestarted | MemberLeft | StoreLost | StoreRegained


class WakeUp(Protocol):
    """Tells when looking again is worth while."""

    async def wait(self, timeout_s: float) -> None:
        """Return after a change, or after `timeout_s`. Raises: MembershipUnavailable."""
        ...


class Membership(Protocol):
    """The register of members. All raise MembershipUnavailable when there is no answer."""

    async def next_incarnation(self, name: str) -> Incarnation:
        """A number above every earlier one of this name."""
        ...

    async def register(self, record: MemberRecord, ttl_s: float) -> None:
        """Join, or renew the lease.

        Raises: WorkerNameTaken while another live process has the name (a dead one of this host
        is replaced at once); StaleIncarnation when a newer life took it over.
        """
        ...

    async def deregister(self, record: MemberRecord) -> None:
        """Leave at once. Only this life is removed; twice is harmless."""
        ...

    async def listing(self) -> Listing:
        """The members now."""
        ...

    def wake_up(self) -> AbstractAsyncContextManager[WakeUp]:
        """A subscription to changes; open it before `listing` and no change is missed."""
        ...


def name_taken_over(record: MemberRecord) -> StaleIncarnation:
    """The error for a life whose name belongs to a newer one."""
    return StaleIncarnation(
        f"a newer life has taken over the name of {record.name} (incarnation "
        f"{record.incarnation}); stop this process, or start it under another name"
    )


@dataclass(slots=True)
class MembershipTracker:
    """Turns successive listings into changes. Pure: the time is an argument."""

    # After the store was away or lost its memory, members get this long to register again.
    left_grace_s: float
    _members: dict[str, MemberRecord] = field(default_factory=dict)
    _epoch: str | None = None
    _is_store_lost: bool = False
    _nobody_left_before_s: float = 0.0
    # The store's clock less ours, when it was last looked at.
    _store_ahead_s: float | None = None

    def unreachable(self, problem: str) -> list[MembershipChange]:
        """The store gave no answer."""
        if self._is_store_lost:
            return []
        self._is_store_lost = True
        return [StoreLost(problem)]

    def observe(self, listing: Listing, now: float) -> list[MembershipChange]:
        """The store answered this."""
        changes: list[MembershipChange] = []
        forgot = self._epoch is not None and self._epoch != listing.epoch
        if self._is_store_lost or forgot:
            changes.append(StoreRegained())
            self._nobody_left_before_s = now + self.left_grace_s
        if self._was_clock_set(listing.store_now_s, now):
            # Leases seem to have ended that were only measured by another clock.
            self._nobody_left_before_s = now + self.left_grace_s
        self._epoch, self._is_store_lost = listing.epoch, False
        listed = {member.name: member for member in listing.members}
        for name, record in listed.items():
            previous = self._members.get(name)
            if previous is None:
                changes.append(MemberJoined(record))
            elif previous.incarnation != record.incarnation:
                changes.append(MemberRestarted(record, previous))
            self._members[name] = record
        if now >= self._nobody_left_before_s:
            for name in sorted(self._members.keys() - listed.keys()):
                changes.append(MemberLeft(self._members.pop(name)))
        return changes

    def _was_clock_set(self, store_now_s: float | None, now: float) -> bool:
        if store_now_s is None:
            return False
        before_s, self._store_ahead_s = self._store_ahead_s, store_now_s - now
        # What a slow answer adds is less than a renewal of a lease takes.
        return before_s is not None and abs(self._store_ahead_s - before_s) > self.left_grace_s / 4


async def watch(
    membership: Membership, clock: Clock, *, interval_s: float, left_grace_s: float
) -> AsyncGenerator[MembershipChange, None]:
    """Changes as they happen, beginning with all members as joined; never ends by itself.

    A change that the store announces is seen at once, every other (a lease that ran out) within
    `interval_s`.
    """
    tracker = MembershipTracker(left_grace_s)
    while True:
        try:
            async with membership.wake_up() as wake_up:
                while True:
                    for change in tracker.observe(await membership.listing(), clock.now()):
                        yield change
                    await wake_up.wait(interval_s)
        except MembershipUnavailable as error:
            for change in tracker.unreachable(error.message):
                yield change
            await asyncio.sleep(interval_s)
