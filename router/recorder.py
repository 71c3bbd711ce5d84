"""Keeps what the core was told and what it wanted done, in a file, for `tandem replay`.

Events are handed over to a thread that encodes, packs and writes them. Nobody ever waits for it:
where it cannot keep up or cannot write, the recording ends with one log line and serving goes on.
"""

import os
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from router.events import Action, Event, WorkerConnected
from router.recording.entries import (
    ENDED,
    FULL,
    TOO_SLOW,
    RecordingHead,
    event_line,
    head_line,
    last_line,
    outcome_of,
)
from router.recording.file import GzipLines
from router.recording.values import Encoder
from runtime.clock import MonotonicClock
from runtime.logging import get_logger

log = get_logger()

# Events that may wait for the disk.
_MAX_WAITING = 16_384
# What a killed router loses at most.
_FLUSH_S = 1.0

_Result = Sequence[Action] | Exception
_Item = tuple[float, Event, _Result]


class Recorder:
    """Owned by the event loop; its thread writes."""

    def __init__(
        self,
        path: Path,
        head: RecordingHead,
        max_bytes: int,
        max_waiting: int = _MAX_WAITING,
        open_file: Callable[[Path], BinaryIO] | None = None,
    ) -> None:
        """The file must not exist; its folder is made."""
        self.path = path
        self._head = head
        self._max_bytes = max_bytes
        self._queue: queue.Queue[_Item | None] = queue.Queue(max_waiting)
        # Nothing is taken any more.
        self._is_over = False
        self._reason = ENDED
        # Salts are secrets of callers: names stand for them, which nobody can guess back.
        salt_key = secrets.token_bytes(16)
        self._encoder = Encoder(salt_key)
        self._abridging = Encoder(salt_key, is_abridging=True)
        self._clock = MonotonicClock()
        self._open_file = open_file or _new_file
        self._num_events = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def note(self, now: float, event: Event, result: _Result) -> None:
        """The core took an event in. Never waits, never raises; the values must not change."""
        if self._is_over:
            return
        try:
            self._queue.put_nowait((now, event, result))
        except queue.Full:
            self._reason, self._is_over = TOO_SLOW, True
            self._say("more happens than can be written; record less, or on a faster disk")

    def close(self, timeout_s: float) -> bool:
        """Write what is left; False when that took too long. Blocks."""
        self._is_over = True
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with self._open_file(self.path) as file:
                self._write_all(GzipLines(file))
        except OSError as error:
            self._say(f"{error}; serving goes on")
        except Exception:  # a defect here must not end what is served
            log.exception("recording_failed", path=str(self.path))
        finally:
            self._is_over = True
            self._drop_waiting()

    def _write_all(self, lines: GzipLines) -> None:
        log.info("recording_started", path=str(self.path))
        lines.write(head_line(self._head))
        flush_at_s: float | None = self._clock.now()
        while True:
            wait_s = None if flush_at_s is None else max(0.0, flush_at_s - self._clock.now())
            try:
                item = self._queue.get(timeout=wait_s)
            except queue.Empty:
                lines.flush()
                flush_at_s = None
                continue
            if item is None:
                break
            self._num_events += 1
            lines.write(self._line(*item))
            if lines.num_bytes >= self._max_bytes:
                self._reason = FULL
                break
            flush_at_s = self._flushed(lines, flush_at_s)
        lines.write(last_line(self._reason))
        lines.close()
        if self._reason == FULL:
            self._say(f"{self._max_bytes} bytes are written; raise record_max_mib for more")

    def _flushed(self, lines: GzipLines, due_at_s: float | None) -> float | None:
        """When to flush next."""
        now = self._clock.now()
        if due_at_s is None:
            return now + _FLUSH_S
        if now < due_at_s:
            return due_at_s
        lines.flush()
        return None

    def _line(self, now: float, event: Event, result: _Result) -> bytes:
        if isinstance(event, WorkerConnected):
            self._encoder.met(event.hello.block_size)
        outcome = outcome_of(result, self._abridging)
        return event_line(self._num_events, now, self._encoder.plain(event), outcome)

    def _say(self, problem: str) -> None:
        log.error(
            "recording_stopped", path=str(self.path), num_events=self._num_events, problem=problem
        )

    def _drop_waiting(self) -> None:
        """Nobody will write these; whoever closes finds room for its mark."""
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass


def _new_file(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # It holds what callers wrote, as token ids: for the owner only.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb", buffering=0)
