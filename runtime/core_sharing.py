"""Engines of one machine that tell each other when they compute, so that no core has to idle.

Prefill and decode seldom need the same: with few clients one waits for the other, with many the
prompts decide how soon anybody is served. Fixed shares waste whatever the other side does not use.
So engines take turns: each keeps, in a small file that all of them map, until when it computes and
since when it waits, and whoever waited longest goes next. On a machine with many cores several
compute at once, each with its share. Nothing depends on the file being right: a wrong mark costs
speed for one step.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

# A step gains from this many cores nearly in proportion, so fewer are never divided.
MIN_CORES_OF_A_SHARE = 4
# After a step its engine keeps its share for this long: the next step usually follows at once.
LINGER_S = 0.02
# A waiting engine asks again far sooner; one that does not ask any more has given up its turn.
MAX_WAIT_BETWEEN_ASKS_S = 0.02
# How long a stopped engine can hold the others up: a multiple of its longest step, within bounds.
_PATIENCE = 4.0
MIN_PATIENCE_S = 0.25
MAX_PATIENCE_S = 5.0

_NUM_PLACES = 64
_INSTANTS_OF_A_PLACE = 4
_PLACE = struct.Struct(f"{_INSTANTS_OF_A_PLACE}d")
_PLACE_BYTES = _PLACE.size
_FILE_BYTES = _NUM_PLACES * _PLACE_BYTES


class TooManyEngines(RuntimeError):
    """Every place of the file is taken by a living process."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{_NUM_PLACES} engines share {path} already; use a second file")


@dataclass(frozen=True, slots=True)
class EngineMark:
    """What an engine tells the others; instants in seconds of the machine's monotonic clock."""

    # It computes, at the latest until then.
    busy_until: float = 0.0
    # It keeps its share until then.
    active_until: float = 0.0
    # It waits for its turn, and the mark counts until then.
    waiting_since: float = 0.0
    waiting_until: float = 0.0

    def is_busy(self, now: float) -> bool:
        """It computes."""
        return _is_ahead(self.busy_until, now, MAX_PATIENCE_S)

    def is_active(self, now: float) -> bool:
        """It computes, or has a moment ago."""
        return self.is_busy(now) or _is_ahead(self.active_until, now, MAX_PATIENCE_S)

    def is_waiting(self, now: float) -> bool:
        """It wants to compute."""
        return _is_ahead(self.waiting_until, now, MAX_WAIT_BETWEEN_ASKS_S)


def _is_ahead(until: float, now: float, at_most_s: float) -> bool:
    # Nobody writes an instant further ahead than that. What lies there is of a time before the
    # machine's last start, or no mark. Twice, for another may have looked at the clock later.
    return now < until <= now + 2 * at_most_s


NO_MARK = EngineMark()


def max_engines_at_once(num_cores: int) -> int:
    """How many engines may compute at the same time."""
    return max(1, num_cores // MIN_CORES_OF_A_SHARE)


def possible_shares(num_cores: int) -> tuple[int, ...]:
    """Every number of threads that `share_of_cores` may answer with, the smallest first."""
    at_once = range(1, max_engines_at_once(num_cores) + 1)
    return tuple(sorted({num_cores // num_engines for num_engines in at_once}))


def share_of_cores(
    num_cores: int, others: Sequence[EngineMark], waiting_since: float, now: float
) -> int | None:
    """Threads for an engine that wants to compute now; None while it is the turn of others."""
    limit = max_engines_at_once(num_cores)
    num_busy = sum(mark.is_busy(now) for mark in others)
    num_before = sum(mark.is_waiting(now) and mark.waiting_since < waiting_since for mark in others)
    if num_busy + num_before >= limit:
        return None
    num_active = sum(mark.is_active(now) for mark in others)
    return num_cores // min(limit, 1 + num_active)


class CoreSharing:
    """One engine's place in the file. The clock is the machine's monotonic one: all must use it."""

    def __init__(self, path: Path, num_cores: int) -> None:
        """Take a free place; the file is made if need be. Raises: OSError, TooManyEngines."""
        self._num_cores = num_cores
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Never shorter: another process maps it already.
            if os.fstat(self._file).st_size < _FILE_BYTES:
                os.truncate(self._file, _FILE_BYTES)
            self._place = self._take_place(path)
            self._map = mmap.mmap(self._file, _FILE_BYTES)
        except BaseException:
            os.close(self._file)
            raise
        self._instants: memoryview[float] = memoryview(self._map).cast("d")
        self._write(self._place, NO_MARK)
        self._waiting_since: float | None = None
        self._waiting_until = 0.0
        self._began_at = 0.0
        # Until a step was seen nobody knows how long one takes.
        self._longest_step_s = MAX_PATIENCE_S

    def begin(self, now: float) -> int | None:
        """The threads to use for a step that begins now; None: ask again in a millisecond."""
        if self._waiting_since is None or now >= self._waiting_until:
            # Also where it gave up its turn, as others saw it.
            self._waiting_since = now
        others = dict(self._others())
        share = self._share(list(others.values()), now)
        if share is None and self._forget_the_dead(others, now):
            share = self._share([mark for _, mark in self._others()], now)
        if share is None:
            self._waiting_until = now + MAX_WAIT_BETWEEN_ASKS_S
            mark = EngineMark(0.0, 0.0, self._waiting_since, self._waiting_until)
            self._write(self._place, mark)
            return None
        patience_s = _PATIENCE * self._longest_step_s
        until = now + min(MAX_PATIENCE_S, max(MIN_PATIENCE_S, patience_s))
        self._write(self._place, EngineMark(until, until))
        self._waiting_since = None
        self._began_at = now
        return share

    def end(self, now: float, *, has_computed: bool = True) -> None:
        """The step is over, or there was none to make."""
        if has_computed:
            took_s = now - self._began_at
            # Forgets a single slow step after a while.
            self._longest_step_s = max(took_s, 0.9 * self._longest_step_s)
        self._write(self._place, EngineMark(0.0, now + LINGER_S) if has_computed else NO_MARK)

    def close(self) -> None:
        """Give the place back."""
        self._write(self._place, NO_MARK)
        self._instants.release()
        self._map.close()
        os.close(self._file)

    def __enter__(self) -> "CoreSharing":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _share(self, others: Sequence[EngineMark], now: float) -> int | None:
        assert self._waiting_since is not None
        return share_of_cores(self._num_cores, others, self._waiting_since, now)

    def _others(self) -> Iterator[tuple[int, EngineMark]]:
        for place, values in enumerate(_PLACE.iter_unpack(self._instants)):
            if place != self._place and any(values):
                yield place, EngineMark(*values)

    def _write(self, place: int, mark: EngineMark) -> None:
        instants = (mark.busy_until, mark.active_until, mark.waiting_since, mark.waiting_until)
        begin = place * _INSTANTS_OF_A_PLACE
        for index, instant in enumerate(instants, begin):
            self._instants[index] = instant

    def _take_place(self, path: Path) -> int:
        # A lock on one byte; the kernel lets it go when the process ends, however it ends.
        for place in range(_NUM_PLACES):
            if self._lock(place):
                return place
        raise TooManyEngines(path)

    def _forget_the_dead(self, others: dict[int, EngineMark], now: float) -> bool:
        """Clear the marks of engines that were killed in a step; whether there were any."""
        dead = [place for place, mark in others.items() if mark.is_busy(now)]
        dead = [place for place in dead if self._lock(place)]
        for place in dead:
            self._write(place, NO_MARK)
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
        return bool(dead)

    def _lock(self, place: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True
