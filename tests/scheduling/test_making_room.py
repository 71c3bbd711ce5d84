"""Who makes room for a prompt that cannot wait, and when a prompt cannot."""

from itertools import combinations
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.ids import TaskId
from scheduling.making_room import URGENT_SHARE, Yielding, is_urgent, who_yields

A, B, C = TaskId("a/0"), TaskId("b/0"), TaskId("c/0")
NOW = 10.0
answers_in_order = st.lists(
    st.builds(
        Yielding,
        st.integers(0, 10**6).map(lambda number: TaskId(f"t{number}/0")),
        st.integers(0, 9),
        st.sampled_from([9.0, 10.0, 10.5, 11.0, 12.0, inf]),
    ),
    unique_by=lambda answer: answer.task_id,
    max_size=8,
)


@pytest.mark.parametrize(
    ("now", "hopeless_at_s", "expected"),
    [
        (3.99, 4.0, True),
        (2.01 + 2.0 * URGENT_SHARE, 4.0, True),
        (1.99 + 2.0 * URGENT_SHARE, 4.0, False),
        (2.0, 4.0, False),
        # It is too late for it: others lose what it cannot gain.
        (4.0, 4.0, False),
        (5.0, 4.0, False),
        # It may wait for ever.
        (1e9, inf, False),
        # It was too late when it came.
        (2.0, 1.0, False),
    ],
)
def test_a_prompt_is_urgent_while_waiting_on_would_make_it_late(
    now: float, hopeless_at_s: float, expected: bool
) -> None:
    assert is_urgent(2.0, hopeless_at_s, now) is expected


def test_the_first_in_order_that_can_wait_makes_room() -> None:
    in_order = [Yielding(A, 4, inf), Yielding(B, 4, inf)]
    assert who_yields(in_order, 3, 11.0, NOW) == [A]
    assert who_yields(in_order, 5, 11.0, NOW) == [A, B]


def test_who_is_due_no_later_than_the_prompt_keeps_its_blocks() -> None:
    in_order = [Yielding(A, 4, 11.0), Yielding(B, 4, 11.5)]
    assert who_yields(in_order, 3, 11.0, NOW) == [B]
    # Who is late is due now.
    assert who_yields([Yielding(A, 4, NOW)], 3, 1.0, NOW) == []


def test_nobody_makes_room_where_all_that_can_wait_hold_too_little() -> None:
    assert who_yields([Yielding(A, 4, inf), Yielding(B, 4, inf)], 9, 11.0, NOW) == []


def test_nobody_makes_room_without_whom_there_is_enough() -> None:
    in_order = [Yielding(A, 1, inf), Yielding(B, 2, inf), Yielding(C, 5, inf)]
    assert who_yields(in_order, 5, 11.0, NOW) == [C]
    assert who_yields(in_order, 6, 11.0, NOW) == [A, C]


@given(in_order=answers_in_order, num_blocks=st.integers(1, 30), due_at_s=st.floats(9, 13))
def test_room_is_made_whenever_it_can_be_and_by_nobody_needlessly(
    in_order: list[Yielding], num_blocks: int, due_at_s: float
) -> None:
    chosen = set(who_yields(in_order, num_blocks, due_at_s, NOW))
    can_wait = [each for each in in_order if each.parked_due_at_s > max(due_at_s, NOW)]
    yielding = [each for each in can_wait if each.task_id in chosen]
    assert len(yielding) == len(chosen)
    if sum(each.num_blocks for each in can_wait) < num_blocks:
        assert not chosen
        return
    assert sum(each.num_blocks for each in yielding) >= num_blocks
    for fewer in combinations(yielding, len(yielding) - 1):
        assert sum(each.num_blocks for each in fewer) < num_blocks
