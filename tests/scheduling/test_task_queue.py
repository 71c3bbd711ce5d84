"""Order by key, then by arrival; removal from anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from scheduling.ids import TaskId
from scheduling.task_queue import TaskQueue

operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 5), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.just(0)),
    ),
    max_size=200,
)


@given(operations)
def test_the_queue_behaves_like_a_sorted_list(
    operations: list[tuple[str, int, int]],
) -> None:
    queue = TaskQueue(max_tasks=100)
    model: list[tuple[int, int, str]] = []
    for number, (what, task, key) in enumerate(operations):
        name = f"t{task}"
        if what == "push":
            model = [entry for entry in model if entry[2] != name]
            model.append((key, number, name))
            queue.push(TaskId(name), (float(key),))
        elif what == "remove":
            assert queue.remove(TaskId(name)) == any(entry[2] == name for entry in model)
            model = [entry for entry in model if entry[2] != name]
        elif model:
            model.sort()
            first = queue.peek()
            assert first == model.pop(0)[2]
            assert first is not None
            queue.remove(first)
        assert len(queue) == len(model)
        assert list(queue.in_order()) == [entry[2] for entry in sorted(model)]
        assert queue.peek() == (min(model)[2] if model else None)


def test_a_full_queue_says_so() -> None:
    queue = TaskQueue(max_tasks=1)
    assert not queue.is_full
    queue.push(TaskId("a"), (0.0,))
    assert queue.is_full
    assert TaskId("a") in queue
