"""Counts one worker's KV blocks: who owns which, and how often each was handed out.

It stores no tensor (engine/kv_pool.py does). Blocks are handed out in runs of neighbours where
possible, so that a transfer is few large copies.
"""

from bisect import bisect_left
from collections.abc import Sequence

from scheduling.ids import BlockId, Generation, TaskId


class BlockPool:
    """The worker is the authority on its own blocks; the ledger only promises counts of them."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, got {num_blocks}")
        self._num_blocks = num_blocks
        # Free runs [start, end), disjoint, not adjacent, ascending.
        self._starts = [0]
        self._ends = [num_blocks]
        self._num_free = num_blocks
        self._blocks_by_owner: dict[TaskId, list[BlockId]] = {}
        self._generations = [0] * num_blocks

    @property
    def num_blocks(self) -> int:
        """Size of the pool."""
        return self._num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody owns."""
        return self._num_free

    def allocate(self, owner: TaskId, num_blocks: int) -> tuple[BlockId, ...] | None:
        """Give `owner` more blocks, or return None when so many are not free now.

        Each block's generation is raised, so that whoever knew an earlier one is refused.
        """
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        if num_blocks > self._num_free:
            return None
        taken = self._take(num_blocks)
        for block_id in taken:
            self._generations[block_id] += 1
        self._blocks_by_owner.setdefault(owner, []).extend(taken)
        return tuple(taken)

    def release(self, owner: TaskId) -> int:
        """Take all blocks of `owner` back; return how many. Releasing twice is harmless."""
        blocks = self._blocks_by_owner.pop(owner, [])
        for start, end in runs_of(sorted(blocks)):
            self._give(start, end)
        return len(blocks)

    def blocks_of(self, owner: TaskId) -> tuple[BlockId, ...]:
        """Blocks of `owner` in the order in which they were allocated."""
        return tuple(self._blocks_by_owner.get(owner, ()))

    def num_blocks_of(self, owner: TaskId) -> int:
        """How many blocks `owner` holds."""
        return len(self._blocks_by_owner.get(owner, ()))

    def generations_of(self, block_ids: Sequence[BlockId]) -> tuple[Generation, ...]:
        """The current tag of each block, from 1 on."""
        return tuple(Generation(self._generations[block_id]) for block_id in block_ids)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every block is free or has exactly one owner."""
        free = [
            block
            for start, end in zip(self._starts, self._ends, strict=True)
            for block in range(start, end)
        ]
        owned = [block for blocks in self._blocks_by_owner.values() for block in blocks]
        assert len(free) == self._num_free
        assert sorted([*free, *owned]) == list(range(self._num_blocks))
        gaps = zip(self._ends, self._starts[1:], strict=False)
        assert all(end < start for end, start in gaps), "free runs must be merged and ascending"

    def _take(self, num_blocks: int) -> list[BlockId]:
        taken: list[BlockId] = []
        # First fit keeps one run where one is long enough; else the runs are used up in order.
        fits = (i for i, s in enumerate(self._starts) if self._ends[i] - s >= num_blocks)
        position = next(fits, 0)
        while len(taken) < num_blocks:
            start, end = self._starts[position], self._ends[position]
            stop = min(end, start + num_blocks - len(taken))
            taken.extend(BlockId(block) for block in range(start, stop))
            if stop == end:
                del self._starts[position], self._ends[position]
            else:
                self._starts[position] = stop
        self._num_free -= num_blocks
        return taken

    def _give(self, start: int, end: int) -> None:
        position = bisect_left(self._starts, start)
        joins_left = position > 0 and self._ends[position - 1] == start
        joins_right = position < len(self._starts) and self._starts[position] == end
        if joins_left and joins_right:
            self._ends[position - 1] = self._ends[position]
            del self._starts[position], self._ends[position]
        elif joins_left:
            self._ends[position - 1] = end
        elif joins_right:
            self._starts[position] = start
        else:
            self._starts.insert(position, start)
            self._ends.insert(position, end)
        self._num_free += end - start


def runs_of(ascending: Sequence[int]) -> list[tuple[int, int]]:
    """Cut ascending numbers into maximal runs [start, end)."""
    runs: list[tuple[int, int]] = []
    for number in ascending:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold the KV of so many tokens."""
    return -(-num_tokens // block_size)
