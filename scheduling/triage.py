"""A queue in which those that cannot be in time any more yield to those that can.

Under overload, first-come order and earliest-deadline order alike spend the machine on tasks that
have missed their goal already, until every task misses it. Here a task whose time has run out steps
aside. It is served when nobody else waits, and besides in a share of all work, so that it never
waits for ever: short ones hardly at all, since they cost hardly anything.
"""

import math
from collections.abc import Iterator

from scheduling.ids import TaskId
from scheduling.task_queue import Key, TaskQueue

# Of the work, while both kinds wait.
LATE_SHARE = 0.1


class TriagedQueue:
    """Tasks in key order; late ones aside, in the order in which they became late. Bounded."""

    def __init__(self, max_tasks: int, late_share: float = LATE_SHARE) -> None:
        if not 0 < late_share <= 1:
            raise ValueError(f"late_share must be in (0, 1], got {late_share}")
        self._max_tasks = max_tasks
        self._timely = TaskQueue(max_tasks)
        self._late = TaskQueue(max_tasks)
        self._late_at_s: dict[TaskId, float] = {}
        self._late_share = late_share
        # Of each that waits.
        self._cost: dict[TaskId, float] = {}
        # Work that late tasks are owed; as much as the first of them costs: the next turn is its.
        self._credit = 0.0

    def __len__(self) -> int:
        return len(self._cost)

    @property
    def is_empty(self) -> bool:
        """Nobody waits."""
        return not self._cost

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._timely or task_id in self._late

    @property
    def is_full(self) -> bool:
        """No new task may enter; tasks that come back may."""
        return len(self) >= self._max_tasks

    @property
    def num_late(self) -> int:
        """Tasks that stepped aside."""
        return len(self._late)

    def push(
        self, task_id: TaskId, key: Key, late_at_s: float = math.inf, cost: float = 1.0
    ) -> None:
        """Enter or move a task; from `late_at_s` on it yields. `cost`: in tokens, or any unit."""
        self._late.remove(task_id)
        self._cost[task_id] = cost
        self._late_at_s.pop(task_id, None)
        if late_at_s < math.inf:
            self._late_at_s[task_id] = late_at_s
        self._timely.push(task_id, key)

    def peek(self, now: float) -> TaskId | None:
        """The task that goes next, or None when nobody waits. Amortised O(log n)."""
        while (head := self._timely.peek()) is not None:
            late_at_s = self._late_at_s.get(head, math.inf)
            if now < late_at_s:
                break
            self._timely.remove(head)
            self._late.push(head, (late_at_s,))
        late = self._late.peek()
        if late is None or head is None:
            return head or late
        return late if self._credit >= self._cost[late] else head

    def take(self, task_id: TaskId) -> None:
        """It had its turn."""
        cost = self._cost.get(task_id, 0.0)
        if task_id in self._late:
            self._credit = max(0.0, self._credit - cost)
        elif (first := self._late.peek()) is not None:
            self._credit = min(self._cost[first], self._credit + self._late_share * cost)
        self.remove(task_id)

    def remove(self, task_id: TaskId) -> bool:
        """Take a task out wherever it stands; False when it does not wait here."""
        self._late_at_s.pop(task_id, None)
        self._cost.pop(task_id, None)
        was_timely, was_late = self._timely.remove(task_id), self._late.remove(task_id)
        return was_timely or was_late

    def in_order(self) -> Iterator[TaskId]:
        """All waiting tasks, late ones last. For people, not for scheduling: O(n log n)."""
        yield from self._timely.in_order()
        yield from self._late.in_order()
