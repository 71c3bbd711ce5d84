"""Deadlines: in order, forgotten with their request, bounded by what runs."""

from hypothesis import given
from hypothesis import strategies as st

from router.deadlines import Deadlines
from scheduling.ids import RequestId

A, B = RequestId("a"), RequestId("b")


def test_due_requests_come_in_the_order_of_their_deadlines() -> None:
    deadlines = Deadlines()
    deadlines.add(A, 2.0)
    deadlines.add(B, 1.0)
    assert deadlines.next_at() == 1.0
    assert deadlines.take_due(0.5) == []
    assert deadlines.take_due(2.0) == [B, A]
    assert deadlines.next_at() is None


def test_an_id_that_is_used_again_has_the_new_deadline_only() -> None:
    deadlines = Deadlines()
    deadlines.add(A, 1.0)
    deadlines.remove(A)
    deadlines.add(A, 5.0)
    assert deadlines.take_due(4.0) == []
    assert deadlines.take_due(5.0) == [A]


def test_what_ended_early_takes_no_room_for_long() -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.add(RequestId(f"r{number}"), 3600.0 + number)
        deadlines.remove(RequestId(f"r{number}"))
    assert len(deadlines) < 100


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 10), st.booleans()), max_size=80))
def test_it_behaves_like_a_dictionary(steps: list[tuple[str, float, bool]]) -> None:
    deadlines, model = Deadlines(), dict[RequestId, float]()
    for name, at_s, is_removed in steps:
        request_id = RequestId(name)
        deadlines.remove(request_id)
        model.pop(request_id, None)
        if not is_removed:
            deadlines.add(request_id, at_s)
            model[request_id] = at_s
        assert deadlines.next_at() == min(model.values(), default=None)
    due = deadlines.take_due(5.0)
    assert set(due) == {name for name, at_s in model.items() if at_s <= 5.0}
    assert [model[name] for name in due] == sorted(model[name] for name in due)
