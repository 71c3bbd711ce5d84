"""Groups of equal length: their order, what fits, how often anybody chooses."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduling.ids import TaskId
from scheduling.length_groups import BlockRoom, LengthGroups
from scheduling.policy import DeadlineThenOccupancy, WaitingTask

names = st.integers(0, 9).map(lambda number: TaskId(f"t{number}"))
lengths = st.integers(1, 40)
QUANTUM = 4


@dataclass(frozen=True)
class Waiting:
    """Compared as the queue compares."""

    key: tuple[float, ...]
    number: int
    task_id: TaskId
    length: int

    def __lt__(self, other: "Waiting") -> bool:
        return (self.key, self.number) < (other.key, other.number)


class PlainQueue(RuleBasedStateMachine):
    """The queue beside a list that is sorted at every question."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = LengthGroups(1000, length_quantum=QUANTUM, max_overtakes=3)
        self.model: dict[TaskId, Waiting] = {}
        self.num_pushed = 0
        self.overtaken: tuple[TaskId | None, int] = (None, 0)

    @rule(task=names, bucket=st.integers(0, 2), occupied=st.integers(0, 1), length=lengths)
    def push(self, task: TaskId, bucket: int, occupied: int, length: int) -> None:
        rounded = -(-length // QUANTUM) * QUANTUM
        key = (float(bucket), -float(occupied), -float(length))
        self.model[task] = Waiting(key, self.num_pushed, task, rounded)
        self.num_pushed += 1
        self.queue.push(task, key, length)
        assert self.queue.num_response_tokens_of(task) == rounded

    @rule(task=names)
    def remove(self, task: TaskId) -> None:
        assert (task in self.queue) == (task in self.model)
        assert self.queue.remove(task) == (self.model.pop(task, None) is not None)

    @rule(limit=st.integers(-1, 50))
    def ask_for_the_longest(self, limit: int) -> None:
        longest = self.longest(limit)
        assert self.queue.first_at_most(limit) == (longest and longest.task_id)

    @rule(
        num_free=st.integers(0, 40),
        sizes=st.dictionaries(names, st.integers(0, 5), max_size=10),
    )
    def take(self, num_free: int, sizes: dict[TaskId, int]) -> None:
        """A task needs its length, and what `sizes` says for its prompt."""
        needs = {t: w.length + 4 * sizes.get(t, 0) for t, w in self.model.items()}
        room = BlockRoom(num_free, 1, needs.__getitem__)
        groups = self.queue.take_groups(room)
        taken = [(group.num_response_tokens, group.task_ids) for group in groups]
        assert taken == self.groups_of_model(num_free, needs)

    @invariant()
    def both_agree(self) -> None:
        self.queue.check_invariants()
        in_order = [waiting.task_id for waiting in sorted(self.model.values())]
        assert list(self.queue.in_order()) == in_order
        assert self.queue.peek() == (in_order[0] if in_order else None)
        assert len(self.queue) == len(self.model)
        assert self.queue.num_lengths == len({w.length for w in self.model.values()})

    def longest(self, limit: int) -> Waiting | None:
        fitting = [w for w in self.model.values() if w.length <= limit]
        bucket = min((w.key[0] for w in fitting), default=None)
        fitting = [w for w in fitting if w.key[0] == bucket]
        longest = max((w.length for w in fitting), default=None)
        return min((w for w in fitting if w.length == longest), default=None)

    def groups_of_model(
        self, num_free: int, needs: dict[TaskId, int]
    ) -> list[tuple[int, tuple[TaskId, ...]]]:
        groups: list[tuple[int, tuple[TaskId, ...]]] = []

        def take_group(first: Waiting) -> bool:
            nonlocal num_free
            kind = (first.length, first.key[0])
            taken = []
            for each in sorted(w for w in self.model.values() if (w.length, w.key[0]) == kind):
                if needs[each.task_id] > num_free:
                    break
                num_free -= needs[each.task_id]
                taken.append(each.task_id)
                del self.model[each.task_id]
            if taken:
                groups.append((first.length, tuple(taken)))
            return bool(taken)

        while self.model and take_group(min(self.model.values())):
            pass
        if not self.model:
            return groups
        head = min(self.model.values())
        if self.overtaken[0] != head.task_id:
            self.overtaken = (head.task_id, 0)
        if self.overtaken[1] == 3:
            return groups
        num_in_order, limit, num_looks = len(groups), num_free, 0
        while num_looks < 8:
            candidate = self.longest(min(limit, num_free))
            if candidate is None:
                break
            if candidate is head or not take_group(candidate):
                limit, num_looks = candidate.length - 1, num_looks + 1
        self.overtaken = (head.task_id, self.overtaken[1] + (len(groups) > num_in_order))
        return groups


TestPlainQueue = PlainQueue.TestCase


def queue_of(*tasks: tuple[str, float, int], quantum: int = 1) -> LengthGroups:
    """(name, deadline bucket, length)."""
    queue = LengthGroups(100, length_quantum=quantum)
    for name, bucket, length in tasks:
        queue.push(TaskId(name), (bucket, 0.0, -float(length)), length)
    return queue


def take(queue: LengthGroups, num_tokens: int) -> list[str]:
    """The groups that fit so many tokens, each as its members."""
    room = BlockRoom(num_tokens, 1, queue.num_response_tokens_of)
    return ["".join(group.task_ids) for group in queue.take_groups(room)]


def test_the_first_in_order_brings_all_of_its_length_along() -> None:
    queue = queue_of(("a", 0, 8), ("b", 0, 4), ("c", 0, 8), ("d", 1, 8), ("e", 0, 4))
    assert take(queue, 100) == ["ac", "be", "d"]


def test_a_group_ends_where_the_room_does_and_the_gap_goes_to_the_longest_that_fits() -> None:
    queue = queue_of(("a", 0, 8), ("b", 0, 8), ("c", 0, 3), ("d", 0, 2), ("e", 1, 6))
    # 14 tokens: one of 8; the second does not fit, of the same bucket 3 and 2 do.
    assert take(queue, 14) == ["a", "c", "d"]
    assert list(queue.in_order()) == ["b", "e"]


def test_lengths_are_equal_when_they_round_up_to_the_same() -> None:
    queue = queue_of(("a", 0, 29), ("b", 0, 17), ("c", 0, 32), ("d", 0, 16), quantum=16)
    assert take(queue, 200) == ["cab", "d"]
    assert queue.num_lengths == 0


def test_lengths_beyond_the_largest_count_as_one() -> None:
    queue = LengthGroups(10, length_quantum=16, max_length_tokens=64)
    for name, length in (("a", 1000), ("b", 64), ("c", 63)):
        queue.push(TaskId(name), (0.0,), length)
    assert queue.num_lengths == 1


def test_one_that_does_not_fit_is_overtaken_only_so_often() -> None:
    queue = LengthGroups(100, length_quantum=1, max_overtakes=2)
    queue.push(TaskId("long"), (0.0,), 50)
    for number in range(5):
        queue.push(TaskId(f"{number}"), (1.0,), 10)
    assert [take(queue, 10) for _ in range(4)] == [["0"], ["1"], [], []]
    # As soon as it fits it goes, and the others after it.
    assert take(queue, 80) == ["long", "234"]


def test_with_spans_a_group_takes_later_buckets_along() -> None:
    queue = LengthGroups(100, length_quantum=1, spans_buckets=True)
    for name, bucket, length in (("a", 0.0, 8), ("b", 0.0, 4), ("c", 1.0, 8)):
        queue.push(TaskId(name), (bucket,), length)
    assert take(queue, 100) == ["ac", "b"]


# PAPERS 1.4.7.
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 6)), min_size=2, max_size=30
    )
)
def test_order_is_bucket_then_occupancy_then_length(tasks: list[tuple[int, int, int]]) -> None:
    ordering = DeadlineThenOccupancy(deadline_bucket_s=1.0, kvc_bucket_blocks=1)
    queue = LengthGroups(100, length_quantum=1)
    for number, (bucket, num_blocks, length) in enumerate(tasks):
        waiting = WaitingTask(0.0, bucket + number / 100, num_blocks, 1, length)
        queue.push(TaskId(f"{number}"), ordering.generation_key(waiting), length)
    in_order = [tasks[int(task_id)] for task_id in queue.in_order()]
    assert in_order == sorted(tasks, key=lambda task: (task[0], -task[1], -task[2]))
    # Whatever is grouped, nobody goes before somebody of an earlier bucket.
    groups = queue.take_groups(BlockRoom(10**6, 1, lambda _: 1))
    buckets = [tasks[int(task_id)][0] for group in groups for task_id in group.task_ids]
    assert buckets == sorted(buckets)


# PAPERS 1.4.5: the queue's side of it. A group is chosen once, however many it holds.
@pytest.mark.parametrize("num_lengths", [1, 10, 50])
def test_the_next_length_is_chosen_once_for_each_group(num_lengths: int) -> None:
    rng = random.Random(num_lengths)
    queue = LengthGroups(10_000, length_quantum=1)
    for number in range(2_000):
        length = rng.randint(1, num_lengths)
        queue.push(TaskId(f"{number}"), (0.0, 0.0, -float(length)), length)
    groups = queue.take_groups(BlockRoom(10**6, 1, lambda _: 1))
    assert sum(len(group.task_ids) for group in groups) == 2_000
    assert len(groups) == queue.num_selections == num_lengths


def test_what_was_removed_leaves_no_trace_behind() -> None:
    queue = LengthGroups(100_000)
    for number in range(10_000):
        queue.push(TaskId(f"{number}"), (float(number),), 16)
    for number in range(9_999, 0, -1):
        queue.remove(TaskId(f"{number}"))
    queue.check_invariants()
    assert queue.peek() == TaskId("0")


def test_a_full_queue_says_so() -> None:
    queue = LengthGroups(max_tasks=1)
    assert not queue.is_full
    queue.push(TaskId("a"), (0.0,), 1)
    assert queue.is_full
    assert TaskId("a") in queue


def test_a_length_is_at_least_a_token() -> None:
    with pytest.raises(ValueError, match="whole tokens"):
        LengthGroups(10, length_quantum=0)
