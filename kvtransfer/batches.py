"""A push cut into batches: what is announced, written and published as one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.checksum import block_checksum
from kvtransfer.device import KvSource
from kvtransfer.errors import LayoutMismatch
from kvtransfer.layout import block_index
from kvtransfer.plan import CopyRun, batch_runs, merge_runs, sampled_indices
from kvtransfer.protocol import BlockMoves, CopyBytes
from kvtransfer.zerocopy import ZeroCopy

# Of the blocks of a pool that have these ids.
ChecksumsOf: TypeAlias = Callable[[Sequence[int]], npt.NDArray[np.uint64]]
# Of one block in host memory.
HostChecksum: TypeAlias = Callable[[npt.NDArray[np.uint8]], int]


def plain_copy(target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
    """One memcpy; numpy lets go of the interpreter lock while it runs."""
    target[:] = source


@dataclass(frozen=True, slots=True)
class PushSettings:
    """How blocks are sent."""

    # Share of blocks that carry a checksum, in [0, 1].
    checksum_fraction: float = 1 / 16
    # Bytes announced, copied and published as one: the grain of cancels and deadlines.
    # A batch costs half a millisecond over TCP (docs/decisions/kv-over-tcp.md).
    max_batch_bytes: int = 16 << 20
    # Over TCP: when the kernel may read the blocks where they lie.
    zerocopy: ZeroCopy = ZeroCopy.AUTO
    # The copy itself: replaced to inject faults.
    copy_bytes: CopyBytes = plain_copy
    # Of blocks in host memory; the receiver's pool needs the same.
    checksum: HostChecksum = block_checksum

    def __post_init__(self) -> None:
        if not 0.0 <= self.checksum_fraction <= 1.0:
            raise ValueError(f"checksum_fraction {self.checksum_fraction} is not in [0, 1]")
        if self.max_batch_bytes < 1:
            raise ValueError("max_batch_bytes must be positive")


@dataclass(frozen=True, slots=True)
class TaggedBlocks:
    """Target blocks, the generation each was granted under, and the checksums of some."""

    dst: npt.NDArray[np.int64]
    tags: npt.NDArray[np.uint64]
    # Positions within `dst` of the blocks that carry a checksum, and these checksums.
    sampled: npt.NDArray[np.int64]
    checksums: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Target blocks and where their bytes come from."""

    runs: tuple[CopyRun, ...]
    blocks: TaggedBlocks

    @property
    def num_blocks(self) -> int:
        return len(self.blocks.dst)


@dataclass(frozen=True, slots=True)
class TargetPool:
    """The pool that is pushed into, in numbers, and the most blocks that one batch may hold."""

    num_blocks: int
    block_bytes: int
    max_batch_blocks: int | None = None


def num_source_blocks(source_bytes: int, moves: BlockMoves, block_bytes: int) -> int:
    """How many blocks a source holds. Raises: LayoutMismatch where the moves name others."""
    if source_bytes % block_bytes:
        raise LayoutMismatch(
            f"a source of {source_bytes} bytes does not hold blocks of {block_bytes} bytes"
        )
    block_index(moves.src_block_ids, source_bytes // block_bytes)
    return source_bytes // block_bytes


def source_blocks(source: KvSource, moves: BlockMoves, block_bytes: int) -> npt.NDArray[np.uint8]:
    """A source in host memory as [num_blocks, block_bytes]. Raises: LayoutMismatch."""
    if not isinstance(source, memoryview):
        raise LayoutMismatch("this transport reads host memory, and the pool is on a device")
    num_blocks = num_source_blocks(source.nbytes, moves, block_bytes)
    return np.frombuffer(source, np.uint8).reshape(num_blocks, block_bytes)


def host_checksums(pool: npt.NDArray[np.uint8], checksum: HostChecksum) -> ChecksumsOf:
    """Of blocks in host memory [num_blocks, block_bytes]."""

    def of(block_ids: Sequence[int]) -> npt.NDArray[np.uint64]:
        return np.array([checksum(pool[at]) for at in block_ids], np.uint64)

    return of


def cut_batches(
    pool: npt.NDArray[np.uint8], moves: BlockMoves, target: TargetPool, settings: PushSettings
) -> Iterator[Batch]:
    """Lazily: a batch's checksums are taken just before its bytes leave, while it is in cache."""
    return cut_tagged_batches(host_checksums(pool, settings.checksum), moves, target, settings)


def cut_tagged_batches(
    checksums_of: ChecksumsOf, moves: BlockMoves, target: TargetPool, settings: PushSettings
) -> Iterator[Batch]:
    """The same where the blocks may lie anywhere."""
    dst = block_index(moves.dst_block_ids, target.num_blocks)
    tags = np.asarray(moves.generations, dtype=np.uint64)
    runs = merge_runs(moves.src_block_ids, moves.dst_block_ids)
    max_bytes = settings.max_batch_bytes
    if target.max_batch_blocks is not None:
        max_bytes = min(max_bytes, target.max_batch_blocks * target.block_bytes)
    start = 0
    for batch in batch_runs(runs, target.block_bytes, max_bytes):
        num_blocks = sum(run.num_blocks for run in batch)
        first = moves.first_index + start
        indices = sampled_indices(moves.transfer_id, first, num_blocks, settings.checksum_fraction)
        src = [moves.src_block_ids[index - moves.first_index] for index in indices]
        end = start + num_blocks
        blocks = TaggedBlocks(
            dst=dst[start:end],
            tags=tags[start:end],
            sampled=np.array([index - first for index in indices], np.int64),
            checksums=checksums_of(src),
        )
        yield Batch(batch, blocks)
        start = end
