"""The sender's half of a pool that it can write to itself: a push is a row of copies."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import Batch, PushSettings, TargetPool, cut_batches, source_blocks
from kvtransfer.claimed_write import ClaimedWriter
from kvtransfer.device import KvSource
from kvtransfer.errors import TransferCancelled, TransferTimeout
from kvtransfer.layout import PoolViews
from kvtransfer.protocol import BlockMoves, PushReceipt
from runtime.clock import Clock


class PoolWriter(Protocol):
    """Pushes into one peer's pool, under one slot that no one else uses. For one thread."""

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool],
        check_peer: Callable[[], None],
    ) -> PushReceipt:
        """See `KvSender.push`; `check_peer` raises where the receiver is gone."""
        ...

    def look_again(self) -> None:
        """To be called now and then: what was stuck may have ended, and its claim with it."""
        ...

    def close(self) -> bool:
        """Let go of the peer's memory.

        False where something may still write into it: then it stays mapped while the process lives.
        """
        ...


@dataclass(frozen=True, slots=True)
class PushRun:
    """One push under way, and when it ends early."""

    moves: BlockMoves
    block_bytes: int
    clock: Clock
    timeout_s: float
    should_stop: Callable[[], bool]
    check_peer: Callable[[], None]

    def run(self, batches: Iterable[Batch], write: Callable[[Batch], None]) -> PushReceipt:
        """Have every batch written and published, as long as nothing speaks against it."""
        started_at_s = self.clock.now()
        moves, num_done, num_copies, num_checksums = self.moves, 0, 0, 0
        for batch in batches:
            if self.should_stop():
                raise TransferCancelled(moves.transfer_id, num_done, moves.num_blocks)
            if self.clock.now() - started_at_s > self.timeout_s:
                raise TransferTimeout(moves.transfer_id, num_done, moves.num_blocks)
            self.check_peer()
            write(batch)
            num_done += batch.num_blocks
            num_copies += len(batch.runs)
            num_checksums += len(batch.blocks.sampled)
        return PushReceipt(
            num_blocks=num_done,
            num_bytes=num_done * self.block_bytes,
            num_copies=num_copies,
            num_checksums=num_checksums,
            elapsed_s=self.clock.now() - started_at_s,
        )


class BlockWriter:
    """See `PoolWriter`: both pools lie in host memory, and a copy is a memcpy."""

    def __init__(
        self, views: PoolViews, block_bytes: int, slot: int, settings: PushSettings, clock: Clock
    ) -> None:
        self._writer = ClaimedWriter(views, views.slots[slot])
        self._blocks = views.data.reshape(-1, block_bytes)
        self._block_bytes = block_bytes
        self._settings = settings
        self._clock = clock

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool],
        check_peer: Callable[[], None],
    ) -> PushReceipt:
        pool = source_blocks(source, moves, self._block_bytes)
        target = TargetPool(len(self._blocks), self._block_bytes)
        batches = cut_batches(pool, moves, target, self._settings)
        run = PushRun(moves, self._block_bytes, self._clock, timeout_s, should_stop, check_peer)
        return run.run(batches, lambda batch: self._write(pool, batch))

    def look_again(self) -> None:
        """A memcpy ends."""

    def close(self) -> bool:
        # The mapping goes with the last view of it.
        return True

    def _write(self, pool: npt.NDArray[np.uint8], batch: Batch) -> None:
        def copy() -> None:
            blocks, copy_bytes = self._blocks, self._settings.copy_bytes
            for src, dst, num_blocks in batch.runs:
                if num_blocks == 1:  # by far the cheaper way to name one block
                    copy_bytes(blocks[dst], pool[src])
                else:
                    source, target = pool[src : src + num_blocks], blocks[dst : dst + num_blocks]
                    copy_bytes(target.reshape(-1), source.reshape(-1))

        self._writer.write(batch.blocks, copy)
