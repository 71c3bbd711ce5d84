"""A recording as a gzip file: written so that a killed process leaves all but its last second.

Read without trust: memory is bounded whatever the file says of itself.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from router.recording.entries import (
    ANOTHER_FILE,
    Handled,
    LastLine,
    LineMisfit,
    RecordingHead,
    read_head,
    read_line,
)

RECORDING_SUFFIX = ".jsonl.gz"
# Written for gzip, read from it. The lowest level: the rest gains little on what is packed.
_GZIP_WINDOW, _LEVEL = 31, 1
_READ_BYTES = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_WAY_OUT = "ask for the file again, as the router wrote it"
# A request with a prompt of 40 million tokens.
MAX_LINE_BYTES = 256 * 1024 * 1024


class RecordingUnreadable(ValueError):
    """A file is no recording, holds none, or a line of it is not what it should be."""

    def __init__(self, path: Path, line: int, problem: str, way_out: str = "") -> None:
        """`line` is 0 where it is the file as a whole."""
        where = f"{path}, line {line}" if line else str(path)
        super().__init__(f"{where}: {problem}; {way_out or _WAY_OUT}")
        self.path, self.line, self.problem = path, line, problem


class GzipLines:
    """Appends lines to a file that is open for writing, unbuffered."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        # In the file; a few 10 kB more may be on their way.
        self.num_bytes = 0

    def write(self, line: bytes) -> None:
        """Raises: OSError."""
        self._put(self._deflate.compress(line))

    def flush(self) -> None:
        """What was written so far can be read from now on. Raises: OSError."""
        self._put(self._deflate.flush(zlib.Z_SYNC_FLUSH))

    def close(self) -> None:
        """End the stream; the file stays open. Raises: OSError."""
        self._put(self._deflate.flush(zlib.Z_FINISH))

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            num_written = self._file.write(rest)
            rest = rest[num_written:]
            self.num_bytes += num_written


class Recording:
    """A file that is being read; `events` goes through it once."""

    def __init__(self, path: Path, file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """Raises: RecordingUnreadable, OSError."""
        self.path = path
        # Why it ends where it ends, once all events were taken. None: it breaks off, because its
        # router was killed or the file is not whole.
        self.end_reason: str | None = None
        self._lines = _Lines(path, file, max_line_bytes)
        first = next(self._lines, None)
        if first is None:
            is_empty = self._lines.num_read_bytes == 0
            problem = "the file is empty" if is_empty else "it breaks off within its first line"
            raise RecordingUnreadable(path, 0, problem)
        try:
            self.head: RecordingHead = read_head(first)
        except LineMisfit as misfit:
            raise RecordingUnreadable(path, 1, str(misfit), misfit.way_out) from misfit

    def events(self) -> Iterator[Handled]:
        """In the order of the recording. Raises: RecordingUnreadable, OSError."""
        for number, line in enumerate(self._lines, 1):
            try:
                read = read_line(line, number)
            except LineMisfit as misfit:
                raise RecordingUnreadable(self.path, number + 1, str(misfit)) from misfit
            if isinstance(read, LastLine):
                self.end_reason = read.reason
                if next(self._lines, None) is not None:
                    raise RecordingUnreadable(self.path, number + 2, "there is more after the end")
                return
            yield read


class _Lines:
    """Whole lines; what follows the last line end is left out."""

    def __init__(self, path: Path, file: BinaryIO, max_line_bytes: int) -> None:
        self._path, self._file = path, file
        self._max_line_bytes = max_line_bytes
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)
        self._rest = bytearray()
        self.number = 0
        # Of the file.
        self.num_read_bytes = 0
        self._is_gzip = True

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> bytes:
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            if searched > self._max_line_bytes:
                raise RecordingUnreadable(self._path, self.number + 1, "the line never ends")
            more = self._more()
            if not more:
                raise StopIteration
            self._rest += more
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        self.number += 1
        return line

    def _more(self) -> bytes:
        inflate = self._inflate
        while not inflate.eof:
            packed = inflate.unconsumed_tail or self._read()
            if not packed:  # cut off: what zlib holds back is all there is
                return inflate.flush()
            try:
                data = inflate.decompress(packed, _READ_BYTES)
            except zlib.error as error:
                if not self._is_gzip:
                    problem = "this is no gzip file, so no recording of a router"
                    raise RecordingUnreadable(self._path, 0, problem, ANOTHER_FILE) from error
                problem = f"the file is damaged ({error})"
                raise RecordingUnreadable(self._path, self.number + 1, problem) from error
            if data:
                return data
        return b""

    def _read(self) -> bytes:
        packed = self._file.read(_READ_BYTES)
        if self.num_read_bytes == 0:
            self._is_gzip = packed[:2] == _GZIP_MAGIC
        self.num_read_bytes += len(packed)
        return packed
