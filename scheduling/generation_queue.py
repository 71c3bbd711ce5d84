"""The queue of answers that wait for room (GTs), behind one protocol.

Every kind keeps these rules: what is first in order goes first whenever the room admits it; it may
be overtaken by what uses a gap that is too small for it, but only so often (one by one: never), so
that nobody waits for ever while room comes back; and what was not admitted stays where it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from scheduling.ids import TaskId
from scheduling.task_queue import Key, TaskQueue


class Room(Protocol):
    """Where a group is to be admitted."""

    @property
    def max_response_tokens(self) -> int:
        """A longer response than this surely finds no room now; 0 where none does."""
        ...

    def admit(self, task_id: TaskId) -> bool:
        """Make room for the task; False, and nothing has changed, where there is too little."""
        ...


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Tasks that start together and, by prediction, end together; at least one."""

    num_response_tokens: int
    task_ids: tuple[TaskId, ...]


class GenerationQueue(Protocol):
    """Tasks in key order, equal keys in order of arrival."""

    def __len__(self) -> int: ...

    def __contains__(self, task_id: TaskId) -> bool: ...

    @property
    def is_empty(self) -> bool:
        """Nobody waits."""
        ...

    def push(self, task_id: TaskId, key: Key, num_response_tokens: int) -> None:
        """Enter or move a task of so many predicted tokens. The bound is the caller's to check."""
        ...

    def peek(self) -> TaskId | None:
        """The task that goes next, or None when nobody waits."""
        ...

    def remove(self, task_id: TaskId) -> bool:
        """Take a task out wherever it stands; False when it does not wait here."""
        ...

    def in_order(self) -> Iterator[TaskId]:
        """All waiting tasks, the next one first. For people, not for scheduling: O(n log n)."""
        ...

    def take_groups(self, room: Room) -> list[LengthGroup]:
        """Take out what `room` admits, in the order in which it was asked."""
        ...

    def check_invariants(self) -> None:
        """Raise AssertionError unless its parts agree."""
        ...


class OneByOne:
    """A group is one task, and what is first is never overtaken."""

    def __init__(self, max_tasks: int) -> None:
        self._queue = TaskQueue(max_tasks)
        self._length_by_task: dict[TaskId, int] = {}

    def __len__(self) -> int:
        return len(self._length_by_task)

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._queue

    @property
    def is_empty(self) -> bool:
        """See `GenerationQueue.is_empty`."""
        return not self._length_by_task

    def push(self, task_id: TaskId, key: Key, num_response_tokens: int) -> None:
        """See `GenerationQueue.push`."""
        self._queue.push(task_id, key)
        self._length_by_task[task_id] = num_response_tokens

    def peek(self) -> TaskId | None:
        """See `GenerationQueue.peek`."""
        return self._queue.peek()

    def remove(self, task_id: TaskId) -> bool:
        """See `GenerationQueue.remove`."""
        self._length_by_task.pop(task_id, None)
        return self._queue.remove(task_id)

    def in_order(self) -> Iterator[TaskId]:
        """See `GenerationQueue.in_order`."""
        return self._queue.in_order()

    def take_groups(self, room: Room) -> list[LengthGroup]:
        """See `GenerationQueue.take_groups`."""
        groups: list[LengthGroup] = []
        while (task_id := self._queue.peek()) is not None and room.admit(task_id):
            groups.append(LengthGroup(self._length_by_task[task_id], (task_id,)))
            self.remove(task_id)
        return groups

    def check_invariants(self) -> None:
        """See `GenerationQueue.check_invariants`."""
        assert set(self._queue.in_order()) == self._length_by_task.keys()
