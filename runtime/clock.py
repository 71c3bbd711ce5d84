"""The only place that reads the time. Cores take `now` as an argument instead."""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds; comparable only within one process (or one simulation)."""

    def now(self) -> float: ...


class MonotonicClock:
    """The process's monotonic clock: never jumps, meaningless to any other process."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """Time that moves only when told to: for tests and for the simulator."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward and return the new time."""
        if seconds < 0:
            raise ValueError("a clock does not run backwards")
        self._now += seconds
        return self._now

    def jump(self, seconds: float) -> None:
        """Be set by somebody, forward or back, as only a wall clock can be."""
        self._now += seconds


def wall_time_ns() -> int:
    """Nanoseconds since the epoch: for incarnations and log lines, never for durations."""
    return time.time_ns()


def since_boot_s() -> float:
    """Seconds since this machine was started, by the clock that tells when processes were."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def thread_cpu_s() -> float:
    """CPU time that the calling thread has used: to tell how busy an event loop is."""
    return time.thread_time()
