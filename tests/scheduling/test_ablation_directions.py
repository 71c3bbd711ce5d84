"""Which way things go without one part of EcoServe, on its own queue and a pool of blocks.

Whole workers: tests/simulator/test_papers.py.
"""

import random
from dataclasses import dataclass

import pytest

from scheduling.generation_queue import LengthGroup
from scheduling.ids import TaskId
from scheduling.length_groups import BlockRoom, LengthGroups
from scheduling.policy import ArrivalOrder, DeadlineThenOccupancy, Ordering, WaitingTask

NUM_BLOCKS = 400
BY_OCCUPANCY = DeadlineThenOccupancy(kvc_bucket_blocks=1)


@dataclass(frozen=True, slots=True)
class Task:
    """A GT whose prompt's KV is there; it holds that, waiting or not, in room of its own."""

    num_held_blocks: int
    num_response_blocks: int


class Worker:
    """One token of each GT in an iteration, a block holds one; a look at the queue whenever some
    end."""

    def __init__(self, tasks: list[Task], ordering: Ordering, *, is_grouping: bool = True) -> None:
        self._tasks = tasks
        self._ordering = ordering
        self.queue = LengthGroups(len(tasks), length_quantum=1, is_grouping=is_grouping)
        self._num_free = NUM_BLOCKS
        # Ends by iteration.
        self._running: dict[int, list[Task]] = {}
        self.groups: list[LengthGroup] = []
        self.num_iterations = self.num_looks = 0
        # Blocks that those hold who wait, now and summed over iterations.
        self._num_waiting_blocks = self.num_waiting_block_iterations = 0
        self.num_ended = 0

    def run(self) -> None:
        for number in range(len(self._tasks)):
            self._push(number)
        while self.num_ended < len(self._tasks):
            now = self.num_iterations
            ended = self._running.pop(now, [])
            self._num_free += sum(task.num_response_blocks for task in ended)
            self.num_ended += len(ended)
            if (ended or not now) and not self.queue.is_empty:
                self._look(now)
            self.num_waiting_block_iterations += self._num_waiting_blocks
            self.num_iterations += 1

    def _look(self, now: int) -> None:
        self.num_looks += 1
        room = BlockRoom(self._num_free, 1, lambda t: self._tasks[int(t)].num_response_blocks)
        groups = self.queue.take_groups(room)
        self.groups += groups
        self._num_free = room.num_free_blocks
        for group in groups:
            for task_id in group.task_ids:
                task = self._tasks[int(task_id)]
                self._num_waiting_blocks -= task.num_held_blocks
                self._running.setdefault(now + task.num_response_blocks, []).append(task)

    def _push(self, number: int) -> None:
        task = self._tasks[number]
        self._num_waiting_blocks += task.num_held_blocks
        waiting = WaitingTask(
            arrival_at_s=float(number),
            deadline_at_s=1e6,
            num_occupied_blocks=task.num_held_blocks,
            num_prompt_tokens=task.num_held_blocks,
            num_response_tokens=task.num_response_blocks,
        )
        key = self._ordering.generation_key(waiting)
        self.queue.push(TaskId(f"{number}"), key, task.num_response_blocks)


def crowd(seed: int) -> list[Task]:
    """All wait from the beginning."""
    rng = random.Random(seed)
    return [Task(rng.randint(1, 60), rng.choice((10, 20, 40, 80))) for _ in range(600)]


def ran(seed: int, ordering: Ordering = BY_OCCUPANCY, *, is_grouping: bool = True) -> Worker:
    worker = Worker(crowd(seed), ordering, is_grouping=is_grouping)
    worker.run()
    return worker


# PAPERS 1.4.5, over a whole run: some selections for each group, and far fewer than iterations.
@pytest.mark.parametrize("seed", range(4))
def test_answers_are_selected_for_each_group_and_not_in_each_iteration(seed: int) -> None:
    worker = ran(seed)
    num_groups = len(worker.groups)
    assert sum(len(group.task_ids) for group in worker.groups) == 600
    assert worker.num_looks <= num_groups, "the members of a group end together"
    # Choosing a group, and looking in vain for one that fits what is left.
    assert worker.queue.num_selections <= 4 * num_groups
    assert worker.queue.num_selections < worker.num_iterations / 8


# PAPERS 1.4.9: without groups of equal length there is more to choose, and more often.
@pytest.mark.parametrize("seed", range(4))
def test_without_groups_of_one_length_scheduling_costs_more(seed: int) -> None:
    grouped, one_by_one = ran(seed), ran(seed, is_grouping=False)
    assert one_by_one.queue.num_selections > 2 * grouped.queue.num_selections
    assert one_by_one.num_looks > 2 * grouped.num_looks


# PAPERS 1.4.9: without the order those who wait hold more KVC.
@pytest.mark.parametrize("seed", range(4))
def test_in_order_of_arrival_those_who_wait_hold_more(seed: int) -> None:
    ordered, by_arrival = ran(seed), ran(seed, ArrivalOrder())
    assert by_arrival.num_waiting_block_iterations > 1.2 * ordered.num_waiting_block_iterations
