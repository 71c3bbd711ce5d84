"""Keep a cluster whole: a process that ends is reported and started again, the others go on.

Waits grow from one attempt to the next and attempts are counted, so that a process which cannot
live does not use up the machine.
"""

import asyncio
from dataclasses import dataclass

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster, Say
from deploy.local.errors import LaunchFailed, ProcessEnded
from deploy.local.redis import GivenRedis
from deploy.local.settings import ROUTER
from runtime.clock import Clock, MonotonicClock
from runtime.errors import StartupError

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before each new life, and when to give up."""

    first_delay_s: float = 0.5
    max_delay_s: float = 8.0
    # Deaths in a row. Long enough to outlast the lease that a killed worker's name is held by.
    max_deaths: int = 8
    # A life this long was a good one: the count begins again after it.
    good_life_s: float = 60.0

    def delay_s(self, num_deaths: int) -> float | None:
        """The wait after so many deaths in a row; None means to give up."""
        if num_deaths > self.max_deaths:
            return None
        # Bounded, for a larger exponent is no float.
        doublings = min(num_deaths - 1, 64)
        return min(self.first_delay_s * 2.0**doublings, self.max_delay_s)


class DeathCount:
    """Deaths in a row of one process."""

    def __init__(self, back_off: BackOff, clock: Clock) -> None:
        self._back_off = back_off
        self._clock = clock
        self._born_at_s = clock.now()
        self.num_deaths = 0

    def born(self) -> None:
        """A new life begins."""
        self._born_at_s = self._clock.now()

    def died(self) -> float | None:
        """A life has ended; returns the wait before the next, None to give up."""
        if self._clock.now() - self._born_at_s >= self._back_off.good_life_s:
            self.num_deaths = 0
        self.num_deaths += 1
        return self._back_off.delay_s(self.num_deaths)


class KeepAlive:
    """Watches the processes of one cluster until it is cancelled."""

    def __init__(
        self,
        cluster: LocalCluster,
        say: Say,
        back_off: BackOff | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._cluster = cluster
        self._say = say
        self._back_off = back_off or BackOff()
        self._clock = clock or MonotonicClock()

    async def run(self) -> None:
        """Never returns. Raises: LaunchFailed when the router, or our Redis, cannot be kept."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_redis(), name="keep-redis")
                for child in self._cluster.processes:
                    tasks.create_task(self._keep(child), name=f"keep-{child.name}")
        except* LaunchFailed as group:
            raise _first(group) from None

    async def _keep(self, child: ChildProcess) -> None:
        count = DeathCount(self._back_off, self._clock)
        while True:
            await child.wait_ended()
            delay_s = count.died()
            if delay_s is None:
                if child.name == ROUTER:
                    raise child.ending()
                self._say(f"{child.ending().message}; given up, the others go on")
                return
            self._say(f"{child.ending().message}; starting it again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            count.born()
            child.start()
            await self._wait_ready(child)

    async def _wait_ready(self, child: ChildProcess) -> None:
        try:
            await self._cluster.wait_ready(child.name)
        except ProcessEnded:
            # The caller sees the same and counts it.
            return
        except StartupError as error:
            self._say(error.message)
            child.kill()
        else:
            self._say(f"{child.name} is back")

    async def _keep_redis(self) -> None:
        """Only ours: one that was given is kept by its owner."""
        redis, count = self._cluster.redis, DeathCount(self._back_off, self._clock)
        if isinstance(redis, GivenRedis):
            return
        while True:
            await asyncio.sleep(_POLL_S)
            if redis.is_running:
                continue
            delay_s = count.died()
            if delay_s is None:
                raise LaunchFailed(
                    f"redis ended {count.num_deaths} times in a row; its log is {redis.log_path}"
                )
            self._say(f"redis ended; starting it again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            count.born()
            try:
                await redis.revive()
            except LaunchFailed as error:
                # It does not run, which the next round sees and counts.
                self._say(error.message)
            else:
                self._say("redis is back")


def _first(group: BaseExceptionGroup[LaunchFailed]) -> LaunchFailed:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
