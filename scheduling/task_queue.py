"""A queue ordered by a key that is fixed while a task waits: O(log n) in, out and removal."""

import heapq
from collections.abc import Iterator
from itertools import count

from scheduling.ids import TaskId

# Compared from left to right; smaller goes first.
Key = tuple[float, ...]


class TaskQueue:
    """Tasks in key order, equal keys in order of arrival. Bounded."""

    def __init__(self, max_tasks: int) -> None:
        self._max_tasks = max_tasks
        self._heap: list[tuple[Key, int, TaskId]] = []
        # Removed tasks stay in the heap until they surface; the live entry of a task is here.
        self._entry_by_task: dict[TaskId, int] = {}
        self._counter = count()

    def __len__(self) -> int:
        return len(self._entry_by_task)

    @property
    def is_empty(self) -> bool:
        """Nobody waits."""
        return not self._entry_by_task

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._entry_by_task

    @property
    def is_full(self) -> bool:
        """No new task may enter; tasks that come back may."""
        return len(self) >= self._max_tasks

    def push(self, task_id: TaskId, key: Key) -> None:
        """Enter or move a task. The bound is the caller's to check: work in progress must fit."""
        number = next(self._counter)
        self._entry_by_task[task_id] = number
        heapq.heappush(self._heap, (key, number, task_id))

    def peek(self) -> TaskId | None:
        """The task that goes next, or None when nobody waits."""
        while self._heap:
            _, number, task_id = self._heap[0]
            if self._entry_by_task.get(task_id) == number:
                return task_id
            heapq.heappop(self._heap)
        return None

    def remove(self, task_id: TaskId) -> bool:
        """Take a task out wherever it stands; False when it does not wait here."""
        present = self._entry_by_task.pop(task_id, None) is not None
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._entry_by_task):
            self._heap = [e for e in self._heap if self._entry_by_task.get(e[2]) == e[1]]
            heapq.heapify(self._heap)
        return present

    def in_order(self) -> Iterator[TaskId]:
        """All waiting tasks, the next one first. For people, not for scheduling: O(n log n)."""
        for _, number, task_id in sorted(self._heap):
            if self._entry_by_task.get(task_id) == number:
                yield task_id
