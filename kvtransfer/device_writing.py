"""The sender's half of a pool in device memory: copies on a stream, published once they ended."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import (
    Batch,
    ChecksumsOf,
    PushSettings,
    TargetPool,
    cut_tagged_batches,
    host_checksums,
    num_source_blocks,
    source_blocks,
)
from kvtransfer.claimed_write import ClaimedWriter
from kvtransfer.device import ByteRun, CopyStream, DevicePool, KvSource, num_bytes_of
from kvtransfer.errors import CopyStuck, DeviceFailed
from kvtransfer.layout import PoolLayout, PoolViews
from kvtransfer.protocol import BlockMoves, PushReceipt
from kvtransfer.sending import PushRun
from kvtransfer.word_checksum import word_checksum
from runtime.clock import Clock
from runtime.logging import get_logger

log = get_logger()

# Looks at a stream without a pause, which is longer than small batches take; then the pause.
_NUM_EAGER_LOOKS: Final = 100
_PAUSE_S: Final = 50e-6
# A copy cannot be called back, so even a late one is waited for; this long, and then it is stuck.
END_TIMEOUT_S: Final = 10.0
# By identity, both ends of copies that are or were stuck. What is unmapped or freed under a copy
# may be somebody else's by the time it is written. Bounded by the connections; what is closed after
# its copies have ended holds nothing of the device.
_kept_by_id: Final[dict[int, object]] = {}


@dataclass(frozen=True, slots=True)
class MappedTarget:
    """Another process's pool as a sender sees it: tables, blocks, and the slot it writes under."""

    layout: PoolLayout
    views: PoolViews
    slot: int
    pool: DevicePool


def keep(*ends: object) -> None:
    """Something may go on for ever with these: they stay for as long as the process lives."""
    _kept_by_id.update({id(end): end for end in ends})


@contextmanager
def kept_if_stuck(*ends: object) -> Iterator[None]:
    """Keep these for as long as the process lives if CopyStuck is raised within."""
    try:
        yield
    except CopyStuck:
        keep(*ends)
        raise


def wait_for_copies(
    stream: CopyStream, transfer_id: str, must_end: Callable[[], bool], clock: Clock
) -> None:
    """Return once all copies of a stream have ended.

    Raises: CopyStuck END_TIMEOUT_S after `must_end` was first true, or where the device cannot
    tell any more: then nobody knows what is still written.
    """
    pause = threading.Event()
    stuck_at_s: float | None = None
    num_looks = 0
    while not _is_done(stream, transfer_id):
        num_looks += 1
        if num_looks < _NUM_EAGER_LOOKS:
            continue
        pause.wait(_PAUSE_S)
        now = clock.now()
        if stuck_at_s is None:
            stuck_at_s = now + END_TIMEOUT_S if must_end() else None
        elif now >= stuck_at_s:
            raise CopyStuck(transfer_id, END_TIMEOUT_S)


class Ending(Protocol):
    """What is asked whether all that was begun there has ended; raises DeviceFailed."""

    def is_done(self) -> bool: ...


def _nothing() -> None:
    """Nobody has to hear of it."""


class StuckCopies:
    """Remembers a copy that is stuck, and refuses what would wait behind it. Used by one thread.

    A device that answers again is asked again: a stuck copy that has ended is as good as any other.
    """

    def __init__(self) -> None:
        self._error: CopyStuck | None = None
        self._streams: Sequence[Ending] = ()
        self._on_end: Callable[[], None] = _nothing

    def begin(
        self,
        error: CopyStuck,
        streams: Sequence[Ending],
        on_end: Callable[[], None] = _nothing,
    ) -> None:
        """Copies of these streams do not end; `on_end` is called when they turn out to have."""
        log.error("kv_copy_stuck", transfer_id=error.transfer_id, error=str(error))
        self._error, self._streams, self._on_end = error, tuple(streams), on_end

    def is_over(self) -> bool:
        """Whether nothing is stuck (any more); never waits."""
        if self._error is None:
            return True
        try:
            has_ended = all(stream.is_done() for stream in self._streams)
        except DeviceFailed:
            return False
        if has_ended:
            log.warning("kv_copy_ended_late", transfer_id=self._error.transfer_id)
            self._error, self._streams = None, ()
            self._on_end()
        return has_ended

    def require_over(self, transfer_id: str) -> None:
        """Raises: CopyStuck, at once."""
        if not self.is_over():
            assert self._error is not None, "something is stuck"
            raise self._error.refusal_of(transfer_id)


def _is_done(stream: CopyStream, transfer_id: str) -> bool:
    try:
        return stream.is_done()
    except DeviceFailed as error:
        raise CopyStuck(transfer_id, 0.0) from error


class DeviceBlockWriter:
    """See `PoolWriter`. A copy that has begun is waited for, whatever happens meanwhile."""

    def __init__(
        self, target: MappedTarget, stream: CopyStream, settings: PushSettings, clock: Clock
    ) -> None:
        self._target = target
        self._writer = ClaimedWriter(target.views, target.views.slots[target.slot])
        self._stream = stream
        self._settings = settings
        self._clock = clock
        # A copy that may go on for ever: its claim must stay, and there is one for each slot.
        self._stuck = StuckCopies()

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool],
        check_peer: Callable[[], None],
    ) -> PushReceipt:
        self.look_again()
        self._stuck.require_over(moves.transfer_id)
        layout, clock = self._target.layout, self._clock
        size = layout.block_bytes
        target = TargetPool(layout.num_blocks, size)
        checksums_of = self._checksums_of(source, moves)
        batches = cut_tagged_batches(checksums_of, moves, target, self._settings)
        until_s = clock.now() + timeout_s

        def must_end() -> bool:
            return should_stop() or clock.now() > until_s

        def write(batch: Batch) -> None:
            self._writer.write(batch.blocks, lambda: self._copy(source, moves, batch, must_end))

        run = PushRun(moves, size, clock, timeout_s, should_stop, check_peer)
        try:
            with kept_if_stuck(self._target, self._stream, source):
                return run.run(batches, write)
        except CopyStuck as error:
            self._stuck.begin(error, [self._stream], self._writer.release)
            raise

    def look_again(self) -> None:
        self._stuck.is_over()

    def close(self) -> bool:
        if not self._stuck.is_over():
            return False
        self._stream.close()
        self._target.pool.close()
        return True

    def _checksums_of(self, source: KvSource, moves: BlockMoves) -> ChecksumsOf:
        size = self._target.layout.block_bytes
        num_source_blocks(num_bytes_of(source), moves, size)
        if isinstance(source, memoryview):
            return host_checksums(source_blocks(source, moves, size), word_checksum)
        pool = source
        return lambda ids: self._stream.checksums(pool, size, ids) if ids else _none()

    def _copy(
        self, source: KvSource, moves: BlockMoves, batch: Batch, must_end: Callable[[], bool]
    ) -> None:
        size = self._target.layout.block_bytes
        runs = [ByteRun(src * size, dst * size, count * size) for src, dst, count in batch.runs]
        try:
            self._stream.begin(self._target.pool, source, runs)
        finally:
            # Of a begin that failed, some copies may be under way.
            wait_for_copies(self._stream, moves.transfer_id, must_end, self._clock)


def _none() -> npt.NDArray[np.uint64]:
    return np.zeros(0, np.uint64)
