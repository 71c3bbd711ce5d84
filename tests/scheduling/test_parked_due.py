"""Who goes first: a newcomer, or an answer whose KV waits in host memory."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.parked_due import MAX_OVERTAKEN_S, is_before_parked, parked_due_at_s

instants = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("token_due_at_s", "due_at_s"),
    [
        # Half of what it is ahead is for newcomers, the other half for its way back.
        (110.0, 105.0),
        (100.5, 100.25),
        # It has nothing to give.
        (100.0, 100.0),
        (90.0, 100.0),
        # Without a goal, or far ahead of it, it stands still for a while only.
        (1e9, 100.0 + MAX_OVERTAKEN_S),
        (math.inf, 100.0 + MAX_OVERTAKEN_S),
    ],
)
def test_a_parked_answer_gives_half_of_what_it_is_ahead(
    token_due_at_s: float, due_at_s: float
) -> None:
    assert parked_due_at_s(100.0, token_due_at_s) == due_at_s


@pytest.mark.parametrize(
    ("newcomer_due_at_s", "parked_at_s", "goes_first"),
    [
        (103.0, 105.0, True),
        (107.0, 105.0, False),
        (105.0, 105.0, False),
        # Late: as if it were due now.
        (40.0, 105.0, True),
        (40.0, 99.0, False),
        # Both are late: who was moved away waits no longer.
        (40.0, 60.0, False),
        # No goal, or a worker whose parked answers always come first.
        (math.inf, 105.0, False),
        (103.0, -math.inf, False),
    ],
)
def test_whoever_is_due_first_goes_first(
    newcomer_due_at_s: float, parked_at_s: float, goes_first: bool
) -> None:
    assert is_before_parked(newcomer_due_at_s, parked_at_s, 100.0) == goes_first


@given(instants, st.floats(0, 1e6) | st.just(math.inf), instants, instants)
def test_nobody_goes_first_any_more_once_the_time_that_was_given_is_over(
    parked_at_s: float, slack_s: float, newcomer_due_at_s: float, later_s: float
) -> None:
    due_at_s = parked_due_at_s(parked_at_s, parked_at_s + slack_s)
    assert parked_at_s <= due_at_s <= parked_at_s + MAX_OVERTAKEN_S
    assert not is_before_parked(newcomer_due_at_s, due_at_s, due_at_s + later_s)
