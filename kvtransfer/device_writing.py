"""The sender's half of a pool in device memory: copies on a stream, published once they ended."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

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

# Looks at a stream without a pause, which is longer than small batches take; then the pause.
_NUM_EAGER_LOOKS: Final = 100
_PAUSE_S: Final = 50e-6
# A copy cannot be called back, so even a late one is waited for; this long, and then it is stuck.
END_TIMEOUT_S: Final = 10.0
# By identity, both ends of copies that are stuck. What is unmapped or freed under a copy may be
# somebody else's by the time it is written. Bounded by the connections, each of which holds a
# slot of its peer or is of no more use.
_kept_by_id: Final[dict[int, object]] = {}


@dataclass(frozen=True, slots=True)
class MappedTarget:
    """Another process's pool as a sender sees it: tables, blocks, and the slot it writes under."""

    layout: PoolLayout
    views: PoolViews
    slot: int
    pool: DevicePool


@contextmanager
def kept_if_stuck(*ends: object) -> Iterator[None]:
    """Keep these for as long as the process lives if CopyStuck is raised within."""
    try:
        yield
    except CopyStuck:
        _kept_by_id.update({id(end): end for end in ends})
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
        # Set once a copy may go on for ever: its claim must stay, and there is one for each slot.
        self._stuck: CopyStuck | None = None

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool],
        check_peer: Callable[[], None],
    ) -> PushReceipt:
        if self._stuck is not None:
            raise CopyStuck(moves.transfer_id, self._stuck.waited_s)
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
            self._stuck = error
            raise

    def close(self) -> bool:
        if self._stuck is not None:
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
