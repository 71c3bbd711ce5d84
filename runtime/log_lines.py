"""Where log lines go, whatever becomes of it: a full disk or a closed pipe costs lines, no work."""

import os
import threading
from typing import TextIO


class LineWriter:
    """Writes whole lines; those that cannot be written are counted, and owned up to later.

    Past the stream's own buffer, which would keep what it cannot write and grow.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._num_lost = 0
        try:
            self._fd: int | None = stream.fileno()
        except (AttributeError, OSError, ValueError):
            self._fd = None  # in memory, such as a test's

    @property
    def num_lost(self) -> int:
        """Lines that could not be written since the last one that could."""
        return self._num_lost

    def write(self, line: str) -> int:
        """One line with its end. Never raises what the disk or the pipe says."""
        with self._lock:
            confession = f"({self._num_lost} log lines could not be written)\n"
            if self._num_lost and self._try(confession):
                self._num_lost = 0
            if not self._try(line):
                self._num_lost += 1
        return len(line)

    def flush(self) -> None:
        """Nothing is kept back."""

    def _try(self, text: str) -> bool:
        try:
            if self._fd is None:
                self._stream.write(text)
                self._stream.flush()
                return True
            data = text.encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self._fd, data) :]
        except (OSError, ValueError):  # ValueError: the stream is closed
            return False
        return True
