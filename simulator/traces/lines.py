"""Lines of a trace file, plain or gzip, one at a time, with a bound on each and on all."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from simulator.traces.errors import (
    TraceDamaged,
    TraceLineInvalid,
    TraceNotReadable,
    TraceTooLarge,
)

# (bytes of the file that were read, bytes of the file); never called for a pipe.
OnProgress = Callable[[int, int], None]

MAX_LINE_BYTES = 4 * 2**20
MAX_LINES = 10_000_000
_LINES_PER_REPORT = 20_000
_GZIP_MAGIC = b"\x1f\x8b"
_COPY_AGAIN = "copy it again from where it came from"


class TraceLines:
    """The lines that are not blank; iterate once. `number` is that of the latest, from 1."""

    def __init__(
        self,
        path: Path,
        file: BufferedReader,
        on_progress: OnProgress | None = None,
        max_lines: int = MAX_LINES,
    ) -> None:
        self.path = path
        self.number = 0
        self._file = file
        self._on_progress = on_progress
        self._max_lines = max_lines

    def __iter__(self) -> Iterator[str]:
        """Raises: TraceNotReadable, TraceDamaged, TraceLineInvalid, TraceTooLarge."""
        try:
            yield from self._lines()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            # Before OSError, of which BadGzipFile is one.
            raise TraceDamaged(
                self.path, self.number, f"the gzip data end or break here ({error})", _COPY_AGAIN
            ) from None
        except OSError as error:
            raise TraceNotReadable(self.path, error.strerror or str(error)) from None
        self._report()

    def _lines(self) -> Iterator[str]:
        is_gzip = self._file.peek(2)[:2] == _GZIP_MAGIC
        stream = gzip.GzipFile(fileobj=self._file) if is_gzip else self._file
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            self.number += 1
            if len(raw) > MAX_LINE_BYTES:
                problem = f"longer than {MAX_LINE_BYTES} bytes"
                raise TraceLineInvalid(self.path, self.number, problem)
            if self.number > self._max_lines:
                raise TraceTooLarge(
                    self.path,
                    f"more than {self._max_lines} lines",
                    "give max_requests, or cut the file",
                )
            if self.number % _LINES_PER_REPORT == 0:
                self._report()
            text = self._decoded(raw)
            if text and not text.isspace():
                yield text

    def _decoded(self, raw: bytes) -> str:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TraceDamaged(
                self.path,
                self.number,
                f"byte {error.start + 1} of the line is not UTF-8",
                "give a CSV or JSON-lines file in UTF-8, plain or gzip",
            ) from None
        # A byte order mark, as spreadsheets write it.
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def _report(self) -> None:
        if self._on_progress is not None and self._file.seekable():
            self._on_progress(self._file.tell(), os.fstat(self._file.fileno()).st_size)


@contextmanager
def open_trace(path: Path, on_progress: OnProgress | None = None) -> Iterator[TraceLines]:
    """Raises: TraceNotReadable."""
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        # ValueError: a null byte in the path.
        reason = error.strerror if isinstance(error, OSError) else None
        raise TraceNotReadable(path, reason or str(error)) from None
    with file:
        yield TraceLines(path, file, on_progress)
