"""What every queue of answers that wait for room must do, one by one or in groups."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.generation_queue import GenerationQueue, OneByOne
from scheduling.ids import TaskId
from scheduling.length_groups import BlockRoom, LengthGroups
from scheduling.policies import POLICIES

KINDS: dict[str, Callable[[], GenerationQueue]] = {
    "one by one": lambda: OneByOne(100),
    "groups": lambda: LengthGroups(100, length_quantum=1, max_overtakes=3),
    "by length": lambda: LengthGroups(100, length_quantum=1, is_grouping=False),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
# (deadline bucket, tokens)
waiting_tasks = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=12)


def queue_of(kind: str, tasks: list[tuple[int, int]]) -> GenerationQueue:
    """Their ids are their numbers."""
    queue = KINDS[kind]()
    for number, (bucket, length) in enumerate(tasks):
        queue.push(TaskId(f"{number}"), (float(bucket), -float(length)), length)
    return queue


def take(queue: GenerationQueue, tasks: list[tuple[int, int]], num_tokens: int) -> list[TaskId]:
    """Who fits so many tokens, in the order of admission."""
    room = BlockRoom(num_tokens, 1, lambda task_id: tasks[int(task_id)][1])
    return [task_id for group in queue.take_groups(room) for task_id in group.task_ids]


@each_kind
@given(tasks=waiting_tasks, num_tokens=st.integers(0, 40))
def test_what_is_first_in_order_goes_first_if_it_fits(
    kind: str, tasks: list[tuple[int, int]], num_tokens: int
) -> None:
    queue = queue_of(kind, tasks)
    first = queue.peek()
    assert first is not None
    taken = take(queue, tasks, num_tokens)
    if tasks[int(first)][1] <= num_tokens:
        assert taken[0] == first
    else:
        assert queue.peek() == first, "it stays where it was"


@each_kind
@given(tasks=waiting_tasks, num_tokens=st.integers(0, 40))
def test_only_what_was_admitted_leaves(
    kind: str, tasks: list[tuple[int, int]], num_tokens: int
) -> None:
    queue = queue_of(kind, tasks)
    in_order = list(queue.in_order())
    taken = take(queue, tasks, num_tokens)
    queue.check_invariants()
    assert sum(tasks[int(task_id)][1] for task_id in taken) <= num_tokens
    assert list(queue.in_order()) == [each for each in in_order if each not in taken]
    assert len(queue) == len(in_order) - len(taken)
    assert not any(task_id in queue for task_id in taken)


@each_kind
@given(tasks=waiting_tasks)
def test_with_room_for_all_everybody_goes_and_no_later_bucket_before_an_earlier_one(
    kind: str, tasks: list[tuple[int, int]]
) -> None:
    queue = queue_of(kind, tasks)
    buckets = [tasks[int(task_id)][0] for task_id in take(queue, tasks, 10**6)]
    assert buckets == sorted(buckets)
    assert len(buckets) == len(tasks)
    assert queue.is_empty
    assert queue.peek() is None


@each_kind
def test_one_that_waits_for_much_room_is_not_overtaken_for_ever(kind: str) -> None:
    tasks = [(0, 50), *[(1, 5)] * 20]
    queue = queue_of(kind, tasks)
    num_overtakes = 0
    while taken := take(queue, tasks, 9):
        num_overtakes += len(taken)
    assert num_overtakes == {"one by one": 0, "groups": 3, "by length": 0}[kind]
    # Whatever comes later keeps behind it as well.
    queue.push(TaskId("20"), (2.0, -5.0), 5)
    assert take(queue, tasks, 9) == []
    assert take(queue, tasks, 50) == [TaskId("0")]


@each_kind
def test_a_task_moves_when_it_is_pushed_again_and_leaves_once(kind: str) -> None:
    queue = queue_of(kind, [(1, 4), (2, 4)])
    queue.push(TaskId("1"), (0.0, -7.0), 7)
    assert list(queue.in_order()) == [TaskId("1"), TaskId("0")]
    assert queue.remove(TaskId("1"))
    assert not queue.remove(TaskId("1"))
    queue.check_invariants()
    assert queue.peek() == TaskId("0")


@given(tasks=waiting_tasks, num_tokens=st.integers(0, 40))
def test_without_grouping_tasks_go_one_by_one_though_they_are_found_by_length(
    tasks: list[tuple[int, int]], num_tokens: int
) -> None:
    plain, by_length = queue_of("one by one", tasks), queue_of("by length", tasks)
    assert take(by_length, tasks, num_tokens) == take(plain, tasks, num_tokens)


def test_published_policies_take_the_queue_that_they_are_published_with() -> None:
    kinds = {name: type(policy.new_generation_queue(9, 16)) for name, policy in POLICIES.items()}
    assert {name for name, kind in kinds.items() if kind is LengthGroups} == {"ecoserve"}
