"""A queue of generation tasks that are admitted in groups of equal predicted length.

All members of a group end together, so that choosing happens once per group, not per iteration.
Tasks wait in one line per length; a tree over the lengths knows who is first in any range of them.
Going in, out, and choosing each cost O(log n), whatever the number of lengths and deadlines.

Source: EcoServe, sections SyncDecoupled (steps 2 to 4) and Ordering.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scheduling.first_of_lines import Entry, FirstOfLines
from scheduling.generation_queue import LengthGroup, Room
from scheduling.ids import TaskId
from scheduling.task_queue import Key

# Lengths looked at for one that fits a gap, after those that did not for the sake of their prompt.
_MAX_GAP_LOOKS = 8


class BlockRoom:
    """So many free blocks of one pool."""

    def __init__(
        self, num_free_blocks: int, block_size: int, num_blocks_of: Callable[[TaskId], int]
    ) -> None:
        self.num_free_blocks = num_free_blocks
        self._block_size = block_size
        self._num_blocks_of = num_blocks_of

    @property
    def max_response_tokens(self) -> int:
        """See `Room.max_response_tokens`."""
        return self.num_free_blocks * self._block_size

    def admit(self, task_id: TaskId) -> bool:
        """See `Room.admit`."""
        num_blocks = self._num_blocks_of(task_id)
        if num_blocks > self.num_free_blocks:
            return False
        self.num_free_blocks -= num_blocks
        return True


@dataclass(slots=True)
class _Line:
    """The tasks of one length, in order. Removed ones stay inside, never at the front."""

    heap: list[Entry]
    num_tasks: int = 0


class LengthGroups:
    """Tasks in key order, equal keys in order of arrival, and by predicted length. Bounded.

    The first part of a key is the deadline bucket. A group stays within one, so that no task is
    overtaken by one of a later bucket; with `spans_buckets` it takes all of a length. Without
    `is_grouping` a group is one task and nobody is overtaken; guests are found by length all the
    same.
    """

    def __init__(
        self,
        max_tasks: int,
        *,
        length_quantum: int = 16,
        max_length_tokens: int = 1 << 20,
        max_overtakes: int = 64,
        spans_buckets: bool = False,
        is_grouping: bool = True,
    ) -> None:
        if min(length_quantum, max_length_tokens) < 1:
            raise ValueError("lengths are counted in whole tokens")
        self._max_tasks = max_tasks
        # Lengths are rounded up to a multiple of it: the larger, the larger groups, and the waste.
        self._quantum = length_quantum
        # Longer responses count as one length.
        self._max_index = -(-max_length_tokens // length_quantum)
        # How often in a row others may fill the gap that is too small for the first.
        self._max_overtakes = max_overtakes
        self._spans_buckets = spans_buckets
        self._is_grouping = is_grouping
        self._entry_by_task: dict[TaskId, Entry] = {}
        # By length in quanta.
        self._line_by_index: dict[int, _Line] = {}
        self._first_of = FirstOfLines()
        self._next_number = 0
        self._overtaken: TaskId | None = None
        self._num_overtakes = 0
        # How often the next length was chosen.
        self.num_selections = 0

    def __len__(self) -> int:
        return len(self._entry_by_task)

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._entry_by_task

    @property
    def is_full(self) -> bool:
        """No new task may enter; tasks that come back may."""
        return len(self) >= self._max_tasks

    @property
    def is_empty(self) -> bool:
        """Nobody waits."""
        return not self._entry_by_task

    @property
    def num_lengths(self) -> int:
        """Different lengths among the tasks that wait."""
        return len(self._line_by_index)

    def push(self, task_id: TaskId, key: Key, num_response_tokens: int) -> None:
        """Enter or move a task. The bound is the caller's to check: work in progress must fit."""
        self.remove(task_id)
        index = min(self._max_index, max(1, -(-num_response_tokens // self._quantum)))
        entry = (key, self._next_number, task_id, index)
        self._next_number += 1
        self._entry_by_task[task_id] = entry
        line = self._line_by_index.get(index)
        if line is None:
            line = self._line_by_index[index] = _Line([])
        heapq.heappush(line.heap, entry)
        line.num_tasks += 1
        if line.heap[0] is entry:
            self._first_of.put(index, entry)

    def peek(self) -> TaskId | None:
        """The task that goes next, or None when nobody waits."""
        first = self._first_of.all
        return None if first is None else first[2]

    def remove(self, task_id: TaskId) -> bool:
        """Take a task out wherever it stands; False when it does not wait here."""
        entry = self._entry_by_task.pop(task_id, None)
        if entry is None:
            return False
        index = entry[3]
        line = self._line_by_index[index]
        line.num_tasks -= 1
        heap = line.heap
        if not line.num_tasks:
            del self._line_by_index[index]
            self._first_of.put(index, None)
            return True
        if heap[0] is entry:
            while self._entry_by_task.get(heap[0][2]) is not heap[0]:
                heapq.heappop(heap)
            self._first_of.put(index, heap[0])
        if len(heap) > 64 and len(heap) > 2 * line.num_tasks:
            line.heap = [e for e in heap if self._entry_by_task.get(e[2]) is e]
            heapq.heapify(line.heap)
        return True

    def in_order(self) -> Iterator[TaskId]:
        """All waiting tasks, the next one first. For people, not for scheduling: O(n log n)."""
        for entry in sorted(self._entry_by_task.values()):
            yield entry[2]

    def num_response_tokens_of(self, task_id: TaskId) -> int:
        """Its length as the groups see it: rounded up. Raises: KeyError where it does not wait."""
        return self._entry_by_task[task_id][3] * self._quantum

    def first_at_most(self, num_response_tokens: int) -> TaskId | None:
        """The longest task that is not longer, of the earliest deadline bucket that has one.

        The first in order of these. The task stays in the queue.
        """
        self.num_selections += 1
        entry = self._longest(num_response_tokens)
        return None if entry is None else entry[2]

    def take_groups(self, room: Room) -> list[LengthGroup]:
        """Take out what `room` admits: group by group in order, and then what fits the gap.

        The first task in order chooses the length; the others of its length and bucket follow it as
        long as each is admitted. When the first in order is not, the longest that fit go instead,
        of the earliest bucket, but not more than so often before it.
        """
        groups: list[LengthGroup] = []
        while (first := self._first_of.all) is not None:
            self.num_selections += 1
            group = self._take_group(first, room)
            if group is None:
                return groups + (self._fill_gap(first[2], room) if self._is_grouping else [])
            groups.append(group)
        return groups

    def check_invariants(self) -> None:
        """Raise AssertionError unless lines, tree and tasks agree."""
        num_tasks: dict[int, int] = {}
        for task_id, entry in self._entry_by_task.items():
            assert entry[2] == task_id
            num_tasks[entry[3]] = num_tasks.get(entry[3], 0) + 1
        assert num_tasks == {i: line.num_tasks for i, line in self._line_by_index.items()}
        for line in self._line_by_index.values():
            assert len(line.heap) <= max(64, 2 * line.num_tasks), "removed tasks pile up"
        entries = self._entry_by_task.values()
        firsts = {i: min(e for e in entries if e[3] == i) for i in num_tasks}
        self._first_of.check_invariants(firsts)

    def _longest(self, num_response_tokens: int) -> Entry | None:
        index = min(self._max_index, num_response_tokens // self._quantum)
        first = self._first_of.up_to(index)
        if first is None:
            return None
        # No other of these lengths has an earlier bucket, so whoever is not later is of this one.
        return self._first_of.last_up_to(index, bucket=first[0][0])

    def _take_group(self, first: Entry, room: Room) -> LengthGroup | None:
        """The first and its kind; None where not even the first is admitted."""
        index, bucket = first[3], first[0][0]
        taken: list[TaskId] = []
        entry: Entry | None = first
        while entry is not None and (self._spans_buckets or entry[0][0] == bucket):
            task_id = entry[2]
            if not room.admit(task_id):
                break
            self.remove(task_id)
            taken.append(task_id)
            line = self._line_by_index.get(index)
            entry = None if line is None or not self._is_grouping else line.heap[0]
        return LengthGroup(index * self._quantum, tuple(taken)) if taken else None

    def _fill_gap(self, overtaken: TaskId, room: Room) -> list[LengthGroup]:
        if overtaken != self._overtaken:
            self._overtaken, self._num_overtakes = overtaken, 0
        if self._num_overtakes >= self._max_overtakes:
            return []
        groups: list[LengthGroup] = []
        limit, num_looks = room.max_response_tokens, 0
        while num_looks < _MAX_GAP_LOOKS:
            self.num_selections += 1
            entry = self._longest(min(limit, room.max_response_tokens))
            if entry is None:
                break
            group = None if entry[2] == overtaken else self._take_group(entry, room)
            if group is None:
                num_looks += 1
                limit = entry[3] * self._quantum - 1
            else:
                groups.append(group)
        self._num_overtakes += bool(groups)
        return groups
