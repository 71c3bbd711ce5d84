"""Engines of one machine that tell each other when they compute, so that one alone uses all cores.

Prefill and decode rarely peak together: with few clients one waits for the other, and half of the
cores would idle. Each engine keeps, in a small file that all of them map, the instant until which
it counts as busy; whoever begins a step divides the cores by the engines that are busy then.
Nothing depends on the file being right: a wrong count costs speed for one step.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_NUM_PLACES = 256
_PLACE_BYTES = 8
# A step that takes longer, or whose process died in it, no longer counts.
MAX_STEP_S = 5.0
# After a step its engine counts as busy for this long: the next one usually follows at once.
LINGER_S = 0.02


class TooManyEngines(RuntimeError):
    """Every place of the file is taken by a living process."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{_NUM_PLACES} engines share {path} already; use a second file")


def share_of_cores(num_cores: int, busy_until: Sequence[float], now: float) -> int:
    """Threads for an engine that begins now, from the instants of the others."""
    num_busy = 1 + sum(instant > now for instant in busy_until)
    return max(1, num_cores // num_busy)


class CoreSharing:
    """One engine's place in the file. The clock is the machine's monotonic one: all must use it."""

    def __init__(self, path: Path, num_cores: int) -> None:
        """Take a free place; the file is made if need be. Raises: OSError, TooManyEngines."""
        self._num_cores = num_cores
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Never shorter: another process maps it already.
            if os.fstat(self._file).st_size < _NUM_PLACES * _PLACE_BYTES:
                os.truncate(self._file, _NUM_PLACES * _PLACE_BYTES)
            self._place = self._take_place(path)
            self._map = mmap.mmap(self._file, _NUM_PLACES * _PLACE_BYTES)
        except BaseException:
            os.close(self._file)
            raise
        self._instants: memoryview[float] = memoryview(self._map).cast("d")
        self._instants[self._place] = 0.0

    def begin(self, now: float) -> int:
        """The threads to use for a step that begins now."""
        instants: list[float] = list(self._instants)
        del instants[self._place]
        self._instants[self._place] = now + MAX_STEP_S
        return share_of_cores(self._num_cores, instants, now)

    def end(self, now: float) -> None:
        """The step is over."""
        self._instants[self._place] = now + LINGER_S

    def close(self) -> None:
        """Give the place back."""
        self._instants[self._place] = 0.0
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

    def _take_place(self, path: Path) -> int:
        # A lock on one byte; the kernel lets it go when the process ends, however it ends.
        for place in range(_NUM_PLACES):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError:
                continue
            return place
        raise TooManyEngines(path)
