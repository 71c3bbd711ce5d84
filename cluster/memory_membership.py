"""The membership of one process: for tests and for a cluster inside one process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from cluster.errors import WorkerNameTaken
from cluster.membership import Listing, MemberRecord, WakeUp, name_taken_over
from cluster.process_identity import ProcessIdentity, is_known_dead
from runtime.clock import Clock, wall_time_ns
from scheduling.ids import Incarnation


class _Event:
    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        self._changed.set()

    async def wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        self._changed.clear()


class MemoryMembership:
    """`Membership` over a clock."""

    def __init__(
        self, clock: Clock, *, is_dead: Callable[[ProcessIdentity], bool] = is_known_dead
    ) -> None:
        self._clock = clock
        self._is_dead = is_dead
        self._members: dict[str, tuple[MemberRecord, float]] = {}
        self._incarnations: dict[str, int] = {}
        self._watchers: list[_Event] = []

    async def next_incarnation(self, name: str) -> Incarnation:
        last = self._incarnations.get(name, 0)
        self._incarnations[name] = max(last + 1, wall_time_ns() // 1000)
        return Incarnation(self._incarnations[name])

    async def register(self, record: MemberRecord, ttl_s: float) -> None:
        held, expires_at_s = self._members.get(record.name, (record, 0.0))
        is_other = held.incarnation != record.incarnation
        left_s = expires_at_s - self._clock.now()
        if is_other and left_s > 0 and not self._is_dead(held.process):
            if held.incarnation > record.incarnation:
                raise name_taken_over(record)
            process = held.process
            raise WorkerNameTaken(record.name, process.host, process.pid, left_s)
        if is_other and held.incarnation > record.incarnation:
            raise name_taken_over(record)
        is_new = is_other or record.name not in self._members
        self._members[record.name] = (record, self._clock.now() + ttl_s)
        if is_new:
            self._notify()

    async def deregister(self, record: MemberRecord) -> None:
        held = self._members.get(record.name)
        if held is not None and held[0].incarnation == record.incarnation:
            del self._members[record.name]
            self._notify()

    async def listing(self) -> Listing:
        now = self._clock.now()
        alive = (member for member, expires_at_s in self._members.values() if expires_at_s > now)
        return Listing(tuple(sorted(alive, key=lambda member: member.name)), epoch="memory")

    @asynccontextmanager
    async def wake_up(self) -> AsyncIterator[WakeUp]:
        event = _Event()
        self._watchers.append(event)
        try:
            yield event
        finally:
            self._watchers.remove(event)

    def _notify(self) -> None:
        for watcher in self._watchers:
            watcher.notify()
