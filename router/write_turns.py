"""When each stream's reader takes its next batch: at once while there is time, rarer under load.

Writing a message costs the router several times as much as taking a token in. So few writes start
in one turn of the event loop, the longest waiting first, and what a stream gathers meanwhile goes
out in one message: frames of workers are read in time however many streams there are. When the
loop is busy, streams wait a few milliseconds more, together. A first or last token never waits.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

# Writes that one turn of the loop starts: a millisecond or two of work.
_MAX_STARTS = 32
_SAMPLE_S = 0.05
# Below the first share of a core nothing is held back, from the second on all that is allowed.
_CALM, _BUSY = 0.35, 0.95


class Writer(Protocol):
    """Somebody who waits for his turn."""

    def start_writing(self) -> None:
        """It is your turn; harmless when nothing is left to write."""
        ...


class BusyMeter:
    """How much of a core the event loop has used lately."""

    def __init__(self, thread_cpu_s: Callable[[], float]) -> None:
        self._thread_cpu_s = thread_cpu_s
        self._at_s = 0.0
        self._cpu_s = thread_cpu_s()
        self.share = 0.0

    def look(self, now: float) -> None:
        """Cheap enough for every message; measures a few times a second."""
        if now - self._at_s < _SAMPLE_S:
            return
        cpu_s = self._thread_cpu_s()
        latest = (cpu_s - self._cpu_s) / (now - self._at_s)
        # One busy moment after a long rest is no load.
        self.share = (self.share + min(1.0, latest)) / 2
        self._at_s, self._cpu_s = now, cpu_s


class WriteTurns:
    """Shared by all streams of a router. Used from the event loop only."""

    def __init__(self, max_hold_s: float = 0.0, meter: BusyMeter | None = None) -> None:
        self._max_hold_s = max_hold_s
        self._meter = meter
        self._urgent: deque[Writer] = deque()
        self._ready: deque[Writer] = deque()
        self._held: deque[Writer] = deque()
        self._is_running = False
        self._is_holding = False

    def ask(self, writer: Writer, is_urgent: bool) -> None:
        """Call `start_writing` soon; asking twice may call twice."""
        if is_urgent:
            self._urgent.append(writer)
        else:
            loop = asyncio.get_running_loop()
            hold_s = self._hold_s(loop.time())
            if hold_s > 0:
                self._held.append(writer)
                if not self._is_holding:
                    self._is_holding = True
                    loop.call_later(hold_s, self._let_go)
                return
            self._ready.append(writer)
        self._run_soon()

    def _hold_s(self, now: float) -> float:
        if self._meter is None or self._max_hold_s <= 0:
            return 0.0
        self._meter.look(now)
        excess = (self._meter.share - _CALM) / (_BUSY - _CALM)
        return self._max_hold_s * min(1.0, max(0.0, excess))

    def _let_go(self) -> None:
        self._is_holding = False
        self._ready.extend(self._held)
        self._held.clear()
        self._run_soon()

    def _run_soon(self) -> None:
        if not self._is_running:
            self._is_running = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        for _ in range(_MAX_STARTS):
            if self._urgent:
                self._urgent.popleft().start_writing()
            elif self._ready:
                self._ready.popleft().start_writing()
            else:
                break
        self._is_running = False
        if self._urgent or self._ready:
            self._run_soon()
