"""The sender's half of a shared pool: announce, check, copy, check again, publish."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvtransfer.checksum import block_checksum
from kvtransfer.errors import LayoutMismatch, StaleGeneration, TransferCancelled, TransferTimeout
from kvtransfer.layout import SLOT_CLAIM, PoolViews, block_index
from kvtransfer.ordering import full_fence
from kvtransfer.plan import CopyRun, batch_runs, merge_runs, sampled_indices
from kvtransfer.protocol import BlockMoves, CopyBytes, PushReceipt
from kvtransfer.receiving import pack_claim
from runtime.clock import Clock


def plain_copy(target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
    """One memcpy; numpy lets go of the interpreter lock while it runs."""
    target[:] = source


@dataclass(frozen=True, slots=True)
class PushSettings:
    """How a sender copies."""

    # Share of blocks that carry a checksum, in [0, 1].
    checksum_fraction: float = 1 / 16
    # Bytes announced, copied and published as one: the grain of cancels and deadlines.
    max_batch_bytes: int = 8 << 20
    # The copy itself: replaced to inject faults.
    copy_bytes: CopyBytes = plain_copy

    def __post_init__(self) -> None:
        if not 0.0 <= self.checksum_fraction <= 1.0:
            raise ValueError(f"checksum_fraction {self.checksum_fraction} is not in [0, 1]")
        if self.max_batch_bytes < 1:
            raise ValueError("max_batch_bytes must be positive")


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is announced, copied and published as one."""

    runs: tuple[CopyRun, ...]
    dst: npt.NDArray[np.int64]
    tags: npt.NDArray[np.uint64]
    # Positions within the batch of the blocks that carry a checksum, and these checksums.
    sampled: list[int]
    checksums: list[int]


class BlockWriter:
    """Writes granted blocks of one peer's pool, under one slot that no one else uses."""

    def __init__(
        self, views: PoolViews, block_bytes: int, slot: int, settings: PushSettings, clock: Clock
    ) -> None:
        self._views = views
        self._blocks = views.data.reshape(-1, block_bytes)
        self._slot = views.slots[slot]
        self._block_bytes = block_bytes
        self._settings = settings
        self._clock = clock

    def push(
        self,
        source: memoryview,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool],
        check_peer: Callable[[], None],
    ) -> PushReceipt:
        """See `KvSender.push`; `check_peer` raises where the receiver is gone."""
        started_at_s = self._clock.now()
        pool = self._blocks_of(source, moves)
        num_done = num_copies = num_checksums = 0
        for batch in self._batches(pool, moves):
            if should_stop():
                raise TransferCancelled(moves.transfer_id, num_done, moves.num_blocks)
            if self._clock.now() - started_at_s > timeout_s:
                raise TransferTimeout(moves.transfer_id, num_done, moves.num_blocks)
            check_peer()
            self._write(pool, batch)
            num_done += len(batch.dst)
            num_copies += len(batch.runs)
            num_checksums += len(batch.sampled)
        return PushReceipt(
            num_blocks=num_done,
            num_bytes=num_done * self._block_bytes,
            num_copies=num_copies,
            num_checksums=num_checksums,
            elapsed_s=self._clock.now() - started_at_s,
        )

    def _batches(self, pool: npt.NDArray[np.uint8], moves: BlockMoves) -> Iterator[_Batch]:
        """Lazily: a batch's checksums are taken just before its copy, while it is in cache."""
        dst = block_index(moves.dst_block_ids, len(self._views.expected))
        tags = np.asarray(moves.generations, dtype=np.uint64)
        runs = merge_runs(moves.src_block_ids, moves.dst_block_ids)
        start = 0
        for batch in batch_runs(runs, self._block_bytes, self._settings.max_batch_bytes):
            num_blocks = sum(run.num_blocks for run in batch)
            first, fraction = moves.first_index + start, self._settings.checksum_fraction
            indices = sampled_indices(moves.transfer_id, first, num_blocks, fraction)
            src = [moves.src_block_ids[index - moves.first_index] for index in indices]
            end = start + num_blocks
            yield _Batch(
                runs=batch,
                dst=dst[start:end],
                tags=tags[start:end],
                sampled=[index - first for index in indices],
                checksums=[block_checksum(pool[at]) for at in src],
            )
            start = end

    def _write(self, pool: npt.NDArray[np.uint8], batch: _Batch) -> None:
        # One word announces the span from the lowest to the highest block. It may cover blocks
        # that are not ours: their quarantine lasts a moment longer, which is harmless.
        self._slot[SLOT_CLAIM] = pack_claim(int(batch.dst.min()), int(batch.dst.max()) + 1)
        try:
            # Announced before the grant is read: the other half of `ReceivedBlocks.revoke`.
            full_fence()
            self._require_granted(batch)
            self._copy(pool, batch.runs)
            # The bytes are visible before any header that vouches for them.
            full_fence()
            self._require_granted(batch)
            sampled = batch.dst[batch.sampled]
            self._views.checksum[sampled] = batch.checksums
            self._views.checksum_of[sampled] = batch.tags[batch.sampled]
            full_fence()
            self._views.arrived[batch.dst] = batch.tags
        finally:
            full_fence()
            self._slot[SLOT_CLAIM] = 0

    def _copy(self, pool: npt.NDArray[np.uint8], runs: tuple[CopyRun, ...]) -> None:
        blocks, copy_bytes = self._blocks, self._settings.copy_bytes
        for src, dst, num_blocks in runs:
            if num_blocks == 1:  # by far the cheaper way to name one block
                copy_bytes(blocks[dst], pool[src])
            else:
                source, target = pool[src : src + num_blocks], blocks[dst : dst + num_blocks]
                copy_bytes(target.reshape(-1), source.reshape(-1))

    def _require_granted(self, batch: _Batch) -> None:
        is_stale = self._views.expected[batch.dst] != batch.tags
        if is_stale.any():
            at = int(is_stale.argmax())
            current = int(self._views.expected[batch.dst[at]])
            raise StaleGeneration(int(batch.dst[at]), int(batch.tags[at]), current or None)

    def _blocks_of(self, source: memoryview, moves: BlockMoves) -> npt.NDArray[np.uint8]:
        """The source as [num_blocks, block_bytes]."""
        pool = np.frombuffer(source, np.uint8)
        if len(pool) % self._block_bytes:
            raise LayoutMismatch(
                f"a source of {len(pool)} bytes does not hold blocks of {self._block_bytes} bytes"
            )
        blocks = pool.reshape(-1, self._block_bytes)
        block_index(moves.src_block_ids, len(blocks))
        return blocks
