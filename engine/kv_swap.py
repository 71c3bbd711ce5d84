"""Copies KV blocks between a pool and host memory, whole and unchanged.

Neighbouring blocks that stay neighbours are one copy. Of a pool in host memory copies are over when
a call returns. Of a pool on a GPU they run on a stream of their own beside the passes, in the order
of the calls, after all that was computed before; whoever touches their blocks meanwhile says so
first: a pass by `before_pass`, which the GPU waits in, others by `settle`. Source for copies
beside passes that wait only where blocks conflict: FastSwitch, section on multithreading swaps.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.copy_stream import CopyStream, CopyTicket
from engine.kv_pool import KvPool


@dataclass(frozen=True, slots=True)
class FinishedSwap:
    """A swap whose copies have run."""

    num_blocks: int
    num_copies: int
    copy_s: float
    is_out: bool


@dataclass(frozen=True, slots=True)
class _UnderWay:
    block_ids: npt.NDArray[np.int64]
    num_copies: int
    is_out: bool
    ticket: CopyTicket


class KvSwap:
    """Host memory for `num_blocks` blocks of one pool; belongs to the engine thread."""

    def __init__(self, pool: KvPool, num_blocks: int, stream: CopyStream | None = None) -> None:
        """Without a `stream` every copy is over when its call returns.

        Memory is taken from the system as it is written to, so unused room costs nothing; beside a
        stream it is locked and taken at once, which is what lets a device copy by itself.
        """
        # [blocks, block_bytes]: no copy looks at what the bytes mean.
        blocks = pool.tensor.view(pool.num_blocks, pool.layout.block_elements)
        self._device = blocks.view(torch.uint8)
        self._host = torch.empty(
            (num_blocks, pool.layout.block_bytes),
            dtype=torch.uint8,
            pin_memory=stream is not None and pool.device.type == "cuda",
        )
        self._stream = stream
        self._under_way: deque[_UnderWay] = deque()
        # [num_blocks of the pool] how many copies under way touch each.
        self._num_touching = np.zeros(pool.num_blocks, np.int32)
        self._finished: list[FinishedSwap] = []

    @property
    def is_immediate(self) -> bool:
        """Whether copies are over when a call returns; nothing else here matters then."""
        return self._stream is None

    @property
    def is_copying(self) -> bool:
        """Some copies may not be over."""
        return bool(self._under_way)

    def take_out(self, block_ids: Sequence[int], swap_block_ids: Sequence[int]) -> int:
        """Copy blocks to host memory, the first to the first; return the number of copies."""
        pairs = list(_runs(self._device, block_ids, self._host, swap_block_ids))
        return self._copy(block_ids, pairs, is_out=True)

    def bring_back(self, swap_block_ids: Sequence[int], block_ids: Sequence[int]) -> int:
        """Copy blocks from host memory, the first to the first; return the number of copies."""
        pairs = list(_runs(self._host, swap_block_ids, self._device, block_ids))
        return self._copy(block_ids, pairs, is_out=False)

    def finished(self) -> list[FinishedSwap]:
        """Those that ended since the last call; nothing where swaps are immediate."""
        while self._under_way and self._under_way[0].ticket.is_done():
            self._end_first()
        finished, self._finished = self._finished, []
        return finished

    def before_pass(self, block_ids: npt.NDArray[np.int64]) -> None:
        """A pass is about to read or write these blocks: it waits, on the device, for their copies.

        Any shape; ids may repeat.
        """
        if self._stream is not None and self._under_way and self._num_touching[block_ids].any():
            # Copies run in order, so the latest that touches a block is the one to wait for.
            self._stream.hold_compute(self._latest_touching(block_ids))

    def settle(self, block_ids: Sequence[int]) -> None:
        """Return when no copy touches these blocks: somebody else will write to them."""
        ids = np.asarray(block_ids, np.int64)
        while self._under_way and self._num_touching[ids].any():
            self._under_way[0].ticket.wait()
            self._end_first()

    def _copy(
        self, block_ids: Sequence[int], pairs: list[tuple[Tensor, Tensor]], *, is_out: bool
    ) -> int:
        if self._stream is None:
            for source, target in pairs:
                target.copy_(source)
        elif pairs:
            ids = np.asarray(block_ids, np.int64)
            self._under_way.append(_UnderWay(ids, len(pairs), is_out, self._stream.copy(pairs)))
            self._num_touching[ids] += 1
        return len(pairs)

    def _end_first(self) -> None:
        swap = self._under_way.popleft()
        self._num_touching[swap.block_ids] -= 1
        copy_s = swap.ticket.copy_s
        self._finished.append(
            FinishedSwap(len(swap.block_ids), swap.num_copies, copy_s, swap.is_out)
        )

    def _latest_touching(self, block_ids: npt.NDArray[np.int64]) -> CopyTicket:
        is_asked = np.zeros(len(self._num_touching), np.bool_)
        is_asked[block_ids] = True
        return next(
            swap.ticket for swap in reversed(self._under_way) if is_asked[swap.block_ids].any()
        )


def _runs(
    source: Tensor, source_ids: Sequence[int], to: Tensor, to_ids: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(from, to) of each run of blocks that is contiguous on both sides."""
    begin = 0
    pairs = list(zip(source_ids, to_ids, strict=True))
    for end in range(1, len(pairs) + 1):
        length = end - begin
        first, first_to = pairs[begin]
        if end == len(pairs) or pairs[end] != (first + length, first_to + length):
            yield source[first : first + length], to[first_to : first_to + length]
            begin = end
