import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.goals import DueTimes, Goals
from scheduling.token_pace import TokenPace

USUAL = Goals(ttft_s=1.0, tpot_s=0.1)
END_ALONE = Goals(ttft_s=60.0, tpot_s=60.0, jct_s=60.0)
seconds = st.floats(0.001, 1e6)


def due_times(goals: Goals = USUAL, **fields: Any) -> DueTimes:
    """An answer of 21 tokens, perhaps 31, that came at 100 s and waits for its first token."""
    plain = DueTimes(
        goals,
        arrival_at_s=100.0,
        first_token_at_s=None,
        num_tokens=0,
        num_expected=21,
        num_at_most=31,
        prompt_s=2.0,
        token_s=0.5,
    )
    return replace(plain, **fields)


def test_whoever_names_no_end_has_the_usual_goals() -> None:
    assert Goals.wished(None, None, None, USUAL) == USUAL
    assert Goals.wished(0.25, None, None, USUAL) == Goals(0.25, 0.1)


def test_whoever_names_the_end_has_no_goal_for_tokens_before_it_but_its_own() -> None:
    assert Goals.wished(None, None, 60.0, USUAL) == END_ALONE
    assert Goals.wished(None, 0.2, 60.0, USUAL) == Goals(60.0, 0.2, 60.0)


def test_without_a_goal_for_the_end_tokens_are_due_by_ttft_and_tpot() -> None:
    assert due_times().next_token_at_s == 101.0
    begun = due_times(first_token_at_s=107.0, num_tokens=5)
    assert begun.next_token_at_s == 107.5
    assert begun.end_at_s == pytest.approx(100 + 1 + 31 * 0.1)
    assert begun.gap_s(108.0, is_prompt_ahead=False) == 0.1


def test_the_first_token_may_wait_while_half_of_the_time_is_left_for_the_others() -> None:
    assert due_times(END_ALONE).next_token_at_s == 130.0


def test_the_first_token_is_due_earlier_where_the_others_take_more_than_half() -> None:
    assert due_times(END_ALONE, token_s=2.0).next_token_at_s == 160.0 - 20 * 2.0


def test_goals_of_their_own_for_tokens_hold_instead_of_what_follows_from_the_end() -> None:
    assert due_times(replace(END_ALONE, ttft_s=5.0)).next_token_at_s == 105.0
    assert due_times(replace(END_ALONE, ttft_s=50.0)).next_token_at_s == 150.0
    begun = due_times(replace(END_ALONE, tpot_s=3.0), first_token_at_s=140.0, num_tokens=5)
    assert begun.next_token_at_s == 155.0
    assert begun.gap_s(150.0, is_prompt_ahead=False) == 3.0
    # But for what would be behind the end.
    assert replace(begun, num_tokens=8).next_token_at_s == 160.0


def test_what_the_caller_had_from_a_lost_router_puts_nobody_ahead_of_its_goals() -> None:
    """Nobody knows when it came, so what is due counts from the first token that came here."""
    begun = due_times(first_token_at_s=107.0, num_tokens=5, num_resumed=4)
    assert begun.next_token_at_s == pytest.approx(107.1)
    by_end = due_times(END_ALONE, first_token_at_s=140.0, num_tokens=12, num_resumed=10)
    assert by_end.next_token_at_s == pytest.approx(140.0 + 20.0 * 2 / 10), "9 more are to come"


def test_tokens_share_what_is_left_when_the_first_has_come() -> None:
    begun = due_times(END_ALONE, first_token_at_s=140.0, num_tokens=5)
    assert begun.next_token_at_s == pytest.approx(140.0 + 20.0 * 5 / 20)
    assert replace(begun, num_tokens=20).next_token_at_s == pytest.approx(160.0)


def test_one_that_outlives_its_prediction_is_due_at_the_end() -> None:
    begun = due_times(END_ALONE, first_token_at_s=140.0, num_tokens=29)
    assert begun.next_token_at_s == pytest.approx(160.0)


def test_the_end_is_due_at_the_soonest_of_all_goals_and_the_deadline() -> None:
    assert due_times(replace(END_ALONE, ttft_s=1.0, tpot_s=0.1)).end_at_s == pytest.approx(104.1)
    assert due_times(END_ALONE).end_at_s == 160.0
    assert due_times(END_ALONE, deadline_at_s=150.0).end_at_s == 150.0


def test_the_gap_that_a_worker_keeps_to_is_what_is_left_for_what_is_to_come() -> None:
    due = due_times(END_ALONE)
    assert due.gap_s(110.0, is_prompt_ahead=True) == pytest.approx((60.0 - 10.0 - 2.0) / 21)
    begun = replace(due, first_token_at_s=120.0, num_tokens=11)
    assert begun.gap_s(140.0, is_prompt_ahead=False) == pytest.approx(20.0 / 10)


def test_a_goal_for_each_gap_alone_leaves_their_mean_to_the_end() -> None:
    goals = Goals.wished(None, None, 60.0, USUAL, tbt_s=5.0)
    begun = due_times(goals, first_token_at_s=140.0, num_tokens=5)
    assert begun.next_token_at_s == pytest.approx(140.0 + 20.0 * 5 / 20)
    assert begun.gap_s(145.0, is_prompt_ahead=False) == pytest.approx(15.0 / 16)
    # But none is longer than it may be.
    early = due_times(goals, first_token_at_s=102.0, num_tokens=20, token_s=0.1)
    assert early.next_token_at_s == pytest.approx(160.0)
    assert early.gap_s(103.0, is_prompt_ahead=False) == 5.0


def test_nobody_hurries_for_an_end_that_is_out_of_reach() -> None:
    due = due_times(END_ALONE, token_s=3.0)
    assert due.gap_s(110.0, is_prompt_ahead=True) == math.inf
    assert due_times(END_ALONE).gap_s(170.0, is_prompt_ahead=False) == math.inf


def test_nobody_hurries_before_it_is_known_how_long_answers_take() -> None:
    due = due_times(END_ALONE, num_expected=2048, token_s=0.0)
    assert due.gap_s(100.0, is_prompt_ahead=True) == math.inf


def test_a_prompt_is_hopeless_when_its_first_token_or_its_end_would_be_late() -> None:
    assert due_times().hopeless_at_s == 99.0
    assert due_times(END_ALONE).hopeless_at_s == 160.0 - 2.0 - 20 * 0.5
    assert due_times(num_tokens=3, first_token_at_s=100.5).hopeless_at_s == math.inf
    again = due_times(END_ALONE, num_tokens=11, first_token_at_s=109.0)
    assert again.hopeless_at_s == 160.0 - 2.0 - 9 * 0.5
    # Whoever names the first token may know of a shorter answer than is predicted.
    assert due_times(replace(USUAL, jct_s=2.0)).hopeless_at_s == 99.0


def test_a_prompt_with_tokens_from_a_lost_router_is_hopeless_like_any_other() -> None:
    """Its first token here is still to come."""
    again = due_times(num_tokens=4, num_resumed=4)
    assert again.hopeless_at_s == again.next_token_at_s - 2.0 == 99.0
    begun = replace(again, first_token_at_s=100.5, num_tokens=5)
    assert begun.hopeless_at_s == math.inf


@given(seconds, seconds, seconds, st.integers(1, 5000), st.integers(1, 5000), seconds)
def test_a_later_end_makes_nothing_due_sooner(
    ttft_s: float, jct_s: float, more_s: float, num_tokens: int, num_expected: int, now: float
) -> None:
    """No goal for the end is the latest of all, and nothing is ever due behind the end."""
    ends = [Goals(ttft_s, 0.1, each) for each in (jct_s, jct_s + more_s, math.inf)]
    waiting = [due_times(goals, num_expected=num_expected) for goals in ends]
    # It came 1e-3 s after its arrival, so before any end.
    begun = [replace(due, first_token_at_s=100.001, num_tokens=num_tokens) for due in waiting]
    for dues in (waiting, begun):
        for name in ("next_token_at_s", "end_at_s", "hopeless_at_s"):
            instants = [getattr(due, name) for due in dues]
            assert instants[0] <= instants[1] + 1e-6 <= instants[2] + 2e-6
        assert dues[0].next_token_at_s <= 100.0 + jct_s + 1e-6
        assert all(due.gap_s(now, is_prompt_ahead=False) > 0 for due in dues)


def test_a_pace_forgets_what_was_long_ago() -> None:
    pace = TokenPace()
    assert pace.seconds(100) == 0.0
    pace.observe(10, 1.0)
    assert pace.seconds(100) == pytest.approx(10.0)
    for _ in range(500):
        pace.observe(10, 0.5)
    assert pace.seconds(100) == pytest.approx(5.0)
