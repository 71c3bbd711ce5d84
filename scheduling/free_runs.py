"""Free blocks as runs of neighbours, so that what is taken together lies together.

Every operation costs as much as the runs that it touches, however many there are.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from scheduling.ids import BlockId

# Runs looked at for one that is long enough, before the next best are used up.
_MAX_LOOKS = 32


class FreeRuns:
    """Disjoint runs [start, end), none adjacent to another."""

    def __init__(self, num_blocks: int) -> None:
        self._end_by_start = {0: num_blocks}
        self._start_by_end = {num_blocks: 0}
        self.num_free = num_blocks

    def __iter__(self) -> Iterator[int]:
        for start, end in self._end_by_start.items():
            yield from range(start, end)

    def take(self, num_blocks: int) -> list[BlockId]:
        """That many free blocks, one run where one is found quickly. There are so many."""
        assert num_blocks <= self.num_free
        taken: list[BlockId] = []
        start = None
        for first, end in islice(self._end_by_start.items(), _MAX_LOOKS):
            if end - first >= num_blocks:
                start = first
                break
        while len(taken) < num_blocks:
            if start is None:
                start = next(reversed(self._end_by_start))
            end = self._end_by_start.pop(start)
            del self._start_by_end[end]
            stop = min(end, start + num_blocks - len(taken))
            taken.extend(map(BlockId, range(start, stop)))
            if stop < end:
                self._end_by_start[stop], self._start_by_end[end] = end, stop
            start = None
        self.num_free -= num_blocks
        return taken

    def give(self, block_ids: Iterable[BlockId]) -> None:
        """Blocks that nobody has any more; none of them is free."""
        for start, end in runs_of(sorted(block_ids)):
            self.num_free += end - start
            left = self._start_by_end.pop(start, start)
            right = self._end_by_start.pop(end, end)
            if right != end:
                del self._start_by_end[right]
            self._end_by_start[left], self._start_by_end[right] = right, left

    def check_invariants(self) -> None:
        """Raise AssertionError unless the two views agree and runs are merged."""
        assert {end: start for start, end in self._end_by_start.items()} == self._start_by_end
        assert sum(end - start for start, end in self._end_by_start.items()) == self.num_free
        assert not self._end_by_start.keys() & self._start_by_end.keys(), "adjacent runs"
        assert len(set(self)) == self.num_free


def runs_of(ascending: Sequence[int]) -> list[tuple[int, int]]:
    """Cut ascending numbers into maximal runs [start, end)."""
    runs: list[tuple[int, int]] = []
    if not ascending:
        return runs
    start = end = ascending[0]
    if ascending[-1] - start == len(ascending) - 1:
        return [(start, ascending[-1] + 1)]  # most often
    for number in ascending:
        if number != end:
            runs.append((start, end))
            start = number
        end = number + 1
    runs.append((start, end))
    return runs
