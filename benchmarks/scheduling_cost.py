"""What a decision of the router's queues costs, in microseconds and bytes, by how many tasks wait.

    python -m benchmarks.scheduling_cost [--sizes 10,1000,...] [--rounds N] [--out FILE] [--quick]

Every figure is for one task: one goes in and another out while so many wait, is looked for, or is
taken as a member of a group or as a guest.
"""

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import spread, write_results
from scheduling.ids import TaskId
from scheduling.kvc_pipeline import GuestTask, HostView, PipelineRule, choose_guests
from scheduling.length_groups import BlockRoom, LengthGroups
from scheduling.task_queue import Key, TaskQueue

SIZES = (10, 1_000, 100_000, 1_000_000)
# Looks, and tasks that go in and out, in each round.
NUM_OPERATIONS = 2_000
BLOCK_SIZE = 16
MAX_LENGTH = 4_096
# Deadlines of waiting tasks lie this far apart at most, in buckets.
NUM_BUCKETS = 200

Task = tuple[TaskId, Key, int]
# What one round costs, in seconds per task.
Round = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    if args.quick:
        sizes, args.rounds = [size for size in sizes if size <= 1_000], 1
    figures = {str(size): measure(size, args.rounds, random.Random(args.seed)) for size in sizes}
    if args.out is not None:
        write_results(args.out, {"microseconds_by_queued_tasks": figures}, (), args.quick)


def measure(size: int, num_rounds: int, rng: random.Random) -> dict[str, Any]:
    """Everything for one size, printed as well."""
    tasks = [task_of(number, rng) for number in range(size)]
    task_by_id = {task[0]: task for task in tasks}
    groups, queue = LengthGroups(size + 1), TaskQueue(size + 1)
    figures: dict[str, Any] = {
        "bytes per task: groups": num_bytes_per_task(lambda: filled(LengthGroups(size), tasks)),
        "bytes per task: heap": num_bytes_per_task(lambda: filled_heap(TaskQueue(size), tasks)),
        "fill: groups": 1e6 * seconds_per_task(lambda: filled(groups, tasks), size),
        "fill: heap": 1e6 * seconds_per_task(lambda: filled_heap(queue, tasks), size),
    }
    rounds: dict[str, Round] = {
        "in and out: groups": lambda: churn_groups(groups, tasks, rng),
        "in and out: heap": lambda: churn_heap(queue, tasks, rng),
        "peek: groups": lambda: seconds_per_task(
            lambda: [groups.peek() for _ in range(NUM_OPERATIONS)], NUM_OPERATIONS
        ),
        "longest that fits": lambda: look(groups, rng),
        "taken in a group": lambda: take(groups, task_by_id),
        "taken as a guest": lambda: host(groups, task_by_id),
    }
    for what, one_round in rounds.items():
        one_round()  # warm
        figures[what] = [1e6 * one_round() for _ in range(num_rounds)]
    print(f"{size:,} tasks wait, {groups.num_lengths} lengths")
    for what, values in figures.items():
        print(f"  {what:<24} {spread(values if isinstance(values, list) else [values], 2)}")
    return {
        what: statistics.median(values) if isinstance(values, list) else values
        for what, values in figures.items()
    }


def task_of(number: int, rng: random.Random) -> Task:
    """Response lengths as of chats: many short, a few long."""
    length = min(MAX_LENGTH, 1 + int(rng.expovariate(1 / 300)))
    key = (float(rng.randrange(NUM_BUCKETS)), -float(rng.randrange(8)), -float(length))
    return TaskId(f"{number:032x}/0~1"), key, length


def filled(groups: LengthGroups, tasks: Sequence[Task]) -> LengthGroups:
    for task_id, key, length in tasks:
        groups.push(task_id, key, length)
    return groups


def filled_heap(queue: TaskQueue, tasks: Sequence[Task]) -> TaskQueue:
    for task_id, key, _ in tasks:
        queue.push(task_id, key)
    return queue


def churn_groups(groups: LengthGroups, tasks: Sequence[Task], rng: random.Random) -> float:
    chosen = rng.choices(tasks, k=NUM_OPERATIONS)

    def churn() -> None:
        for task_id, key, length in chosen:
            groups.remove(task_id)
            groups.push(task_id, key, length)

    return seconds_per_task(churn, NUM_OPERATIONS)


def churn_heap(queue: TaskQueue, tasks: Sequence[Task], rng: random.Random) -> float:
    chosen = rng.choices(tasks, k=NUM_OPERATIONS)

    def churn() -> None:
        for task_id, key, _ in chosen:
            queue.remove(task_id)
            queue.push(task_id, key)

    return seconds_per_task(churn, NUM_OPERATIONS)


def look(groups: LengthGroups, rng: random.Random) -> float:
    limits = [rng.randint(1, MAX_LENGTH) for _ in range(NUM_OPERATIONS)]
    return seconds_per_task(lambda: list(map(groups.first_at_most, limits)), NUM_OPERATIONS)


def take(groups: LengthGroups, task_by_id: Mapping[TaskId, Task]) -> float:
    """Take what a worker of some thousand blocks has room for, and put it back."""
    room = BlockRoom(8_192, BLOCK_SIZE, lambda t: -(-task_by_id[t][2] // BLOCK_SIZE))
    start = time.perf_counter()
    taken = groups.take_groups(room)
    elapsed = time.perf_counter() - start
    members = [task_by_id[task_id] for group in taken for task_id in group.task_ids]
    filled(groups, members)
    return elapsed / max(1, len(members))


def host(groups: LengthGroups, task_by_id: Mapping[TaskId, Task]) -> float:
    """Fill eight hosts with guests, as far as the places go, and put these back."""
    hosts = [HostView(TaskId(f"host-{number}"), 500, 160) for number in range(8)]
    task = GuestTask(num_written_tokens=100, num_new_blocks=0)
    start = time.perf_counter()
    guests = choose_guests(
        hosts,
        groups,
        PipelineRule(BLOCK_SIZE),
        lambda _: task,
        num_free_blocks=0,
        max_guests=256,
    )
    elapsed = time.perf_counter() - start
    filled(groups, [task_by_id[guest.task_id] for guest in guests])
    return elapsed / max(1, len(guests))


def seconds_per_task(work: Callable[[], object], num_tasks: int) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / num_tasks


def num_bytes_per_task(build: Callable[[], LengthGroups | TaskQueue]) -> float:
    """What the queue holds beside the ids and keys, which exist already."""
    gc.collect()
    tracemalloc.start()
    queue = build()
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return num_bytes / len(queue)


if __name__ == "__main__":
    main()
