"""Which blocks to move and in how few copies. Pure: no memory of a pool is touched.

The prefill worker asks it after every chunk which blocks are ready; the sender asks it how to
turn block pairs into few large copies and which of them carry a checksum.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_WORD = 1 << 64
# 2**64 divided by the golden ratio: multiples of it, modulo 2**64, fill the range evenly.
_GOLDEN_STEP = 0x9E3779B97F4A7C15


class CopyRun(NamedTuple):
    """Blocks [src_block, src_block + num_blocks) go to [dst_block, dst_block + num_blocks).

    A tuple rather than a dataclass: a scattered push makes thousands of these.
    """

    src_block: int
    dst_block: int
    num_blocks: int


def merge_runs(src_block_ids: Sequence[int], dst_block_ids: Sequence[int]) -> tuple[CopyRun, ...]:
    """Merge neighbours that are contiguous on both sides; the order of the pairs is kept.

    Raises: ValueError when the lists differ in length.
    """
    if len(src_block_ids) != len(dst_block_ids):
        raise ValueError(f"{len(src_block_ids)} source and {len(dst_block_ids)} target blocks")
    if not src_block_ids:
        return ()
    # In Python: with numpy, tuples of up to a thousand blocks take longer, and so do scattered ones
    # of any length, of which every block is a run of its own.
    runs: list[CopyRun] = []
    src_start, dst_start, length = src_block_ids[0], dst_block_ids[0], 0
    for src, dst in zip(src_block_ids, dst_block_ids, strict=True):
        if src == src_start + length and dst == dst_start + length:
            length += 1
        else:
            runs.append(CopyRun(src_start, dst_start, length))
            src_start, dst_start, length = src, dst, 1
    runs.append(CopyRun(src_start, dst_start, length))
    return tuple(runs)


def batch_runs(
    runs: Sequence[CopyRun], block_bytes: int, max_batch_bytes: int
) -> Iterator[tuple[CopyRun, ...]]:
    """Cut runs into batches of at most `max_batch_bytes`, in order; a batch is never empty.

    A batch is what a sender announces, copies and publishes as one, so its size bounds how long a
    cancel waits. A block is never cut: one larger than the limit is a batch of its own.
    """
    if block_bytes < 1 or max_batch_bytes < 1:
        raise ValueError("block_bytes and max_batch_bytes must be positive")
    max_blocks = max(1, max_batch_bytes // block_bytes)
    batch: list[CopyRun] = []
    room = max_blocks
    for run in runs:
        while run.num_blocks >= room:
            src, dst, length = run
            batch.append(CopyRun(src, dst, room))
            yield tuple(batch)
            run = CopyRun(src + room, dst + room, length - room)
            batch, room = [], max_blocks
        if run.num_blocks:
            batch.append(run)
            room -= run.num_blocks
    if batch:
        yield tuple(batch)


def pushable_blocks(
    num_computed_tokens: int, num_prompt_tokens: int, block_size: int, num_pushed_blocks: int
) -> range:
    """Indices of the prompt's blocks that became final and were not pushed yet.

    A block that later tokens will still write is not final; the partial last block is once the
    whole prompt is computed.
    """
    if block_size < 1:
        raise ValueError("block_size must be positive")
    if num_computed_tokens >= num_prompt_tokens:
        num_final_blocks = -(-num_prompt_tokens // block_size)
    else:
        num_final_blocks = num_computed_tokens // block_size
    return range(num_pushed_blocks, num_final_blocks)


def sampled_indices(
    transfer_id: str, first_index: int, num_blocks: int, fraction: float
) -> tuple[int, ...]:
    """Indices in [first_index, first_index + num_blocks) whose block carries a checksum.

    The choice depends on transfer and index alone, so it is the same however a transfer is cut
    into pushes. Consecutive indices are spread evenly (a Weyl sequence that starts at a hash of
    the transfer id): every window of n blocks holds nearly n * fraction samples.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"checksum fraction {fraction} is not in [0, 1]")
    if fraction == 0.0:
        return ()
    if fraction == 1.0:
        return tuple(range(first_index, first_index + num_blocks))
    digest = hashlib.blake2b(transfer_id.encode(), digest_size=8).digest()
    start, threshold = int.from_bytes(digest, "little"), int(fraction * _WORD)
    # Modulo 2**64, as unsigned numbers wrap around.
    indices = np.arange(first_index, first_index + num_blocks, dtype=np.uint64)
    is_sampled = indices * np.uint64(_GOLDEN_STEP) + np.uint64(start) < np.uint64(threshold)
    return tuple(indices[is_sampled].tolist())
