"""A line on stderr that says how far a long simulation is."""

from typing import IO

from runtime.clock import Clock

_EVERY_S_ON_A_TERMINAL = 0.2
_EVERY_S_ELSEWHERE = 10.0
# The clock is read at every so many calls at most.
_MAX_CALLS_BETWEEN = 1024
_MINUTE_S, _HOUR_S = 60, 3600


class ProgressLine:
    """One line that is rewritten on a terminal, a line every ten seconds elsewhere.

    `clock` is the real one. Nothing is written in the first ten seconds where there is no
    terminal, so that short runs stay silent.
    """

    def __init__(self, stream: IO[str], clock: Clock, name: str, num_requests: int) -> None:
        self._stream = stream
        self._clock = clock
        self._name = name
        self._num_requests = num_requests
        self._is_terminal = stream.isatty()
        self._every_s = _EVERY_S_ON_A_TERMINAL if self._is_terminal else _EVERY_S_ELSEWHERE
        self._began_at_s = self._told_at_s = clock.now()
        self._num_calls = 0
        # Grows while telling is not due, so that a million calls cost little.
        self._check_at = 1
        self._width = 0

    def update(self, simulated_s: float, num_ended: int) -> None:
        """Tell it, if it is time to; cheap enough for every event."""
        self._num_calls += 1
        if self._num_calls < self._check_at:
            return
        now = self._clock.now()
        waited_s = now - self._told_at_s
        if waited_s < self._every_s:
            # About a tenth of the interval at the pace so far.
            pace = self._num_calls / max(now - self._began_at_s, 1e-9)
            step = min(_MAX_CALLS_BETWEEN, int(pace * self._every_s / 10))
            self._check_at = self._num_calls + max(1, step)
            return
        self._told_at_s = now
        self._write(self._line(simulated_s, num_ended, now - self._began_at_s))

    def close(self, simulated_s: float, num_ended: int) -> None:
        """The run is over: the last state stays, if any was shown."""
        if self._width:
            took_s = self._clock.now() - self._began_at_s
            self._write(self._line(simulated_s, num_ended, took_s))
            if self._is_terminal:
                self._stream.write("\n")
                self._stream.flush()
            self._width = 0

    def _line(self, simulated_s: float, num_ended: int, took_s: float) -> str:
        share = num_ended / self._num_requests if self._num_requests else 1.0
        speed = simulated_s / took_s if took_s > 0 else 0.0
        parts = [
            f"{self._name}: {num_ended:,}/{self._num_requests:,} requests ({share:.0%})",
            f"{brief(simulated_s)} simulated, {speed:,.0f}x real time",
        ]
        if 0 < num_ended < self._num_requests:
            parts.append(f"{brief(took_s / share - took_s)} left")
        return ", ".join(parts)

    def _write(self, line: str) -> None:
        if self._is_terminal:
            # What a longer line before it left is wiped.
            self._stream.write(f"\r{line.ljust(self._width)}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()
        self._width = len(line)


def brief(seconds: float) -> str:
    """3.2s, 1m05s, 2h10m."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
