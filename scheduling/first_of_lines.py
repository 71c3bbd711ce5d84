"""Of many lines that are numbered, whose first task goes first; of all, or of the first so many.

A tree of minima over the numbers: O(log n) for each change and each question.
"""

from collections.abc import Mapping

from scheduling.ids import TaskId
from scheduling.task_queue import Key

# Key, a number that decides between equal keys, the task, and the line it stands in.
Entry = tuple[Key, int, TaskId, int]


class FirstOfLines:
    """Lines are numbered from 0 on; the tree grows with the largest number that came up."""

    def __init__(self) -> None:
        self._num_lines = 1
        # Node i lies above nodes 2 i and 2 i + 1; line n is node num_lines + n.
        self._first: list[Entry | None] = [None, None]

    @property
    def all(self) -> Entry | None:
        """The first of all lines; None where all are empty."""
        return self._first[1]

    def put(self, line: int, entry: Entry | None) -> None:
        """This is the line's first now; None: the line is empty."""
        if line >= self._num_lines:
            self._grow(line)
        first = self._first
        node = self._num_lines + line
        first[node] = entry
        while node > 1:
            node >>= 1
            best = _earlier(first[2 * node], first[2 * node + 1])
            if best is first[node]:
                return
            first[node] = best

    def up_to(self, line: int) -> Entry | None:
        """The first of lines 0 to `line`; None where these are empty."""
        if line < 0:
            return None
        node = self._num_lines + min(line, self._num_lines - 1)
        best = self._first[node]
        while node > 1:
            if node & 1:
                best = _earlier(best, self._first[node - 1])
            node >>= 1
        return best

    def last_up_to(self, line: int, bucket: float) -> Entry | None:
        """The first of the last of these lines whose first key part is not above `bucket`."""
        if line < 0:
            return None
        node = self._num_lines + min(line, self._num_lines - 1)
        while not self._is_within(node, bucket):
            # What lies to the left is below the left neighbour of the nearest right child.
            while not node & 1:
                node >>= 1
            if node <= 1:
                return None
            node -= 1
        while node < self._num_lines:
            node = 2 * node + self._is_within(2 * node + 1, bucket)
        return self._first[node]

    def check_invariants(self, first_by_line: Mapping[int, Entry]) -> None:
        """Raise AssertionError unless these are the firsts, and every node holds the earliest."""
        leaves = self._first[self._num_lines :]
        assert {i: e for i, e in enumerate(leaves) if e is not None} == dict(first_by_line)
        for node in range(1, self._num_lines):
            below = self._first[2 * node : 2 * node + 2]
            assert self._first[node] == min((e for e in below if e is not None), default=None)

    def _is_within(self, node: int, bucket: float) -> bool:
        entry = self._first[node]
        return entry is not None and entry[0][0] <= bucket

    def _grow(self, line: int) -> None:
        leaves = self._first[self._num_lines :]
        while self._num_lines <= line:
            self._num_lines *= 2
        first: list[Entry | None] = [None] * (2 * self._num_lines)
        first[self._num_lines : self._num_lines + len(leaves)] = leaves
        for node in range(self._num_lines - 1, 0, -1):
            first[node] = _earlier(first[2 * node], first[2 * node + 1])
        self._first = first


def _earlier(one: Entry | None, other: Entry | None) -> Entry | None:
    if one is None or (other is not None and other < one):
        return other
    return one
