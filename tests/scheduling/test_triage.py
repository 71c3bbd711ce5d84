"""Late tasks yield, and are served all the same."""

import math

from hypothesis import given
from hypothesis import strategies as st

from scheduling.ids import TaskId
from scheduling.triage import TriagedQueue


def drained(queue: TriagedQueue, now: float) -> list[str]:
    order: list[str] = []
    while (task_id := queue.peek(now)) is not None:
        queue.take(task_id)
        order.append(task_id)
    return order


def test_without_goals_it_is_a_plain_queue() -> None:
    queue = TriagedQueue(10)
    for name, key in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        queue.push(TaskId(name), (key,))
    assert list(queue.in_order()) == ["a", "b", "c"]
    assert drained(queue, now=1e9) == ["a", "b", "c"]


def test_who_is_late_goes_behind_those_in_time() -> None:
    queue = TriagedQueue(10)
    queue.push(TaskId("late"), (1.0,), late_at_s=5.0)
    queue.push(TaskId("timely"), (2.0,), late_at_s=20.0)
    assert queue.peek(4.9) == "late"
    assert queue.peek(5.0) == "timely"
    assert (len(queue), queue.num_late) == (2, 1)
    assert drained(queue, now=5.0) == ["timely", "late"]


def test_a_short_late_task_waits_for_about_ten_times_its_own_work() -> None:
    queue = TriagedQueue(100, late_share=0.1)
    queue.push(TaskId("short"), (0.0,), late_at_s=0.0, cost=5)
    for number in range(20):
        queue.push(TaskId(f"long{number}"), (1.0 + number,), cost=100_000)
    assert drained(queue, now=1.0)[1] == "short"


def test_a_long_late_task_waits_for_more_work_of_others_than_a_short_one() -> None:
    queue = TriagedQueue(100, late_share=0.1)
    queue.push(TaskId("long"), (0.0,), late_at_s=0.0, cost=30)
    for number in range(90):
        queue.push(TaskId(f"timely{number}"), (1.0 + number,), cost=10)
    assert drained(queue, now=1.0).index("long") == 30


def test_late_tasks_have_their_share_of_the_turns() -> None:
    queue = TriagedQueue(1000, late_share=0.25)
    for number in range(10):
        queue.push(TaskId(f"late{number}"), (float(number),), late_at_s=0.0)
    for number in range(40):
        queue.push(TaskId(f"timely{number}"), (100.0 + number,))
    order = drained(queue, now=1.0)
    first = order[:20]
    assert 3 <= sum(name.startswith("late") for name in first) <= 5
    assert [name for name in order if name.startswith("late")] == [f"late{n}" for n in range(10)]


def test_a_task_that_comes_back_is_judged_anew() -> None:
    queue = TriagedQueue(10)
    queue.push(TaskId("a"), (1.0,), late_at_s=1.0)
    queue.push(TaskId("b"), (2.0,))
    assert queue.peek(2.0) == "b"
    queue.push(TaskId("a"), (1.0,), late_at_s=math.inf)
    assert queue.peek(2.0) == "a"
    assert queue.num_late == 0


@given(
    tasks=st.lists(
        st.tuples(st.floats(0, 10), st.none() | st.floats(0, 10)), min_size=1, max_size=40
    ),
    steps=st.lists(st.floats(0, 3), max_size=60),
    share=st.floats(0.01, 1),
)
def test_everybody_gets_a_turn_once(
    tasks: list[tuple[float, float | None]], steps: list[float], share: float
) -> None:
    queue = TriagedQueue(len(tasks), share)
    for number, (key, late_at_s) in enumerate(tasks):
        queue.push(TaskId(str(number)), (key,), math.inf if late_at_s is None else late_at_s)
    assert queue.is_full
    now, served = 0.0, []
    for step in [*steps, *([1.0] * len(tasks))]:
        now += step
        task_id = queue.peek(now)
        if task_id is None:
            break
        assert task_id in queue
        queue.take(task_id)
        served.append(task_id)
    assert sorted(served, key=int) == [str(number) for number in range(len(tasks))]
    assert len(queue) == 0
