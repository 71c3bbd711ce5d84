"""Lines of answers that wait on mixed workers, one for each worker that has their KV."""

from collections.abc import Callable, Iterator

from scheduling.generation_queue import GenerationQueue, Room
from scheduling.ids import TaskId, WorkerId
from scheduling.task_queue import Key


class AnswerLines:
    """A line is there while somebody stands in it."""

    def __init__(self, new_queue: Callable[[], GenerationQueue]) -> None:
        self._new_queue = new_queue
        self._line_by_worker: dict[WorkerId, GenerationQueue] = {}
        self._worker_by_task: dict[TaskId, WorkerId] = {}

    def __len__(self) -> int:
        return len(self._worker_by_task)

    def lines(self) -> list[tuple[WorkerId, GenerationQueue]]:
        """Each line and its worker, in the order in which they began."""
        return list(self._line_by_worker.items())

    def in_order(self) -> Iterator[TaskId]:
        """All that wait, line by line. For people, not for scheduling."""
        for line in self._line_by_worker.values():
            yield from line.in_order()

    def push(self, worker_id: WorkerId, task_id: TaskId, key: Key, length: int) -> None:
        """Wait on that worker with so many predicted tokens."""
        line = self._line_by_worker.get(worker_id)
        if line is None:
            line = self._line_by_worker[worker_id] = self._new_queue()
        line.push(task_id, key, length)
        self._worker_by_task[task_id] = worker_id

    def remove(self, task_id: TaskId) -> bool:
        """Leave the line; False where it stands in none."""
        worker_id = self._worker_by_task.pop(task_id, None)
        if worker_id is None:
            return False
        line = self._line_by_worker.get(worker_id)
        if line is not None:  # else others took the last ones out of it
            line.remove(task_id)
            self._end_if_empty(worker_id)
        return True

    def take_groups(self, worker_id: WorkerId, room: Room) -> None:
        """Let those begin that the worker has room for."""
        for group in self._line_by_worker[worker_id].take_groups(room):
            for task_id in group.task_ids:
                del self._worker_by_task[task_id]
        self._end_if_empty(worker_id)

    def check_invariants(self) -> None:
        """Raise AssertionError unless everybody stands in the line that is known."""
        for worker_id, line in self._line_by_worker.items():
            assert all(self._worker_by_task[task_id] == worker_id for task_id in line.in_order())
            assert not line.is_empty
            line.check_invariants()
        assert len(self) == sum(map(len, self._line_by_worker.values()))

    def _end_if_empty(self, worker_id: WorkerId) -> None:
        if self._line_by_worker[worker_id].is_empty:
            del self._line_by_worker[worker_id]
