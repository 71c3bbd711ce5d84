"""Copies KV blocks between a pool and host memory, whole and unchanged.

Neighbouring blocks that stay neighbours are one copy. The copies are over when a call returns;
those of a pool on a GPU are to run beside the iterations later, behind the same two calls.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.kv_pool import KvPool


class KvSwap:
    """Host memory for `num_blocks` blocks of one pool; belongs to the engine thread."""

    def __init__(self, pool: KvPool, num_blocks: int) -> None:
        """Memory is taken from the system as it is written to, so unused room costs nothing."""
        layout = pool.layout
        self._device = pool.tensor.view(pool.num_blocks, layout.block_elements)
        self._host = torch.empty((num_blocks, layout.block_elements), dtype=layout.torch_dtype)

    def take_out(self, block_ids: Sequence[int], swap_block_ids: Sequence[int]) -> int:
        """Copy blocks to host memory, the first to the first; return the number of copies."""
        return _copy(self._device, block_ids, self._host, swap_block_ids)

    def bring_back(self, swap_block_ids: Sequence[int], block_ids: Sequence[int]) -> int:
        """Copy blocks from host memory, the first to the first; return the number of copies."""
        return _copy(self._host, swap_block_ids, self._device, block_ids)


def _copy(source: Tensor, source_ids: Sequence[int], to: Tensor, to_ids: Sequence[int]) -> int:
    num_copies = 0
    for first, first_to, length in _runs(source_ids, to_ids):
        to[first_to : first_to + length].copy_(source[first : first + length])
        num_copies += 1
    return num_copies


def _runs(source_ids: Sequence[int], to_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first source, first target, length) of each run that is contiguous on both sides."""
    begin = 0
    pairs = list(zip(source_ids, to_ids, strict=True))
    for end in range(1, len(pairs) + 1):
        length = end - begin
        first = pairs[begin]
        if end == len(pairs) or pairs[end] != (first[0] + length, first[1] + length):
            yield *first, length
            begin = end
