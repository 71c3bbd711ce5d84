"""Gives memory back to the system that the process has freed.

The allocator of glibc keeps what many threads freed in small pieces: after a few large prompts
nearly all that they ever took. Asked for it, it gives back every page on which nothing lies.
"""

import asyncio
import ctypes
from collections.abc import Callable

# Less is not worth a walk through the heap.
_WORTH_BYTES = 32 * 1024 * 1024
# Trimming waits for a pause of this length in what is freed, but not for more than so many: memory
# that is needed again at once would only be fetched again from the system.
_PAUSE_S = 1.0
_MAX_PAUSES = 5


class HeapTrimmer:
    """Trims on a thread, some seconds after much was freed. Used from the event loop only."""

    def __init__(self, trim: Callable[[], object] | None = None, pause_s: float = _PAUSE_S) -> None:
        """`trim` may take a tenth of a second; by default what glibc has for it, if it is there."""
        self._trim = trim or find_trim()
        self._pause_s = pause_s
        self._num_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Future[object] | None = None

    def freed(self, num_bytes: int) -> None:
        """So much was let go of, or is about to be."""
        self._num_bytes += num_bytes
        is_under_way = self._timer is not None or self._trimming is not None
        if self._num_bytes >= _WORTH_BYTES and not is_under_way:
            self._wait(_MAX_PAUSES)

    def close(self) -> None:
        """Begin nothing any more."""
        self._trim = None
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, most_pauses: int) -> None:
        loop = asyncio.get_running_loop()
        after_pause = (self._num_bytes, most_pauses - 1)
        self._timer = loop.call_later(self._pause_s, self._pause_ended, *after_pause)

    def _pause_ended(self, num_bytes_before: int, most_pauses: int) -> None:
        self._timer = None
        if self._num_bytes != num_bytes_before and most_pauses > 0:
            self._wait(most_pauses)
        elif self._trim is not None:
            self._num_bytes = 0
            loop = asyncio.get_running_loop()
            self._trimming = loop.run_in_executor(None, self._trim)
            self._trimming.add_done_callback(self._trimmed)

    def _trimmed(self, trimming: "asyncio.Future[object]") -> None:
        self._trimming = None
        self.freed(0)  # looks at what has been freed since


def find_trim() -> Callable[[], object] | None:
    """The allocator's own way of giving memory back; None where it has none, or needs none."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    malloc_trim.argtypes, malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    # Of the free memory at the end of the heap it is to keep nothing. Other threads go on: the
    # interpreter is released meanwhile.
    return lambda: malloc_trim(0)
