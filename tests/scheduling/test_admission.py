"""What a pool will hold at most, and who may still join."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.admission import Demand, FuturePeak, WhatIsReserved, peak_blocks
from scheduling.block_pool import num_blocks_for

demands = st.lists(st.builds(Demand, st.integers(1, 200), st.integers(0, 60)), max_size=12)


def by_stepping(running: list[Demand], size: int) -> tuple[int, int]:
    """The highest total in whole blocks, and how many ran then at most."""
    last = max((demand.num_remaining for demand in running), default=-1)
    peak = 0
    for step in range(last + 1):
        alive = [demand for demand in running if demand.num_remaining >= step]
        peak = max(peak, sum(num_blocks_for(demand.num_tokens + step, size) for demand in alive))
    return peak, len(running)


@given(running=demands, size=st.sampled_from([1, 4, 16]))
def test_the_peak_is_that_of_stepping_through_up_to_half_a_block_an_answer(
    running: list[Demand], size: int
) -> None:
    stepped, num_running = by_stepping(running, size)
    assert abs(peak_blocks(running, size) - stepped) <= num_running / 2 + 1


@given(running=demands, more=st.builds(Demand, st.integers(1, 200), st.integers(0, 60)))
def test_one_more_answer_never_lowers_the_peak(running: list[Demand], more: Demand) -> None:
    assert peak_blocks([*running, more], 16) >= peak_blocks(running, 16)


def test_answers_that_end_make_room_for_those_that_go_on() -> None:
    # 100 tokens each; ends after 10 and after 100 steps: together they never hold 310 tokens.
    short, long = Demand(100, 10), Demand(100, 100)
    assert peak_blocks([short, long], 1) == 221
    assert peak_blocks([long, long], 1) == 401


def test_a_newcomer_waits_while_the_peak_would_not_fit() -> None:
    rule = FuturePeak()
    running = [Demand(100, 100)]
    assert rule.admits(running, Demand(50, 20), num_blocks=202, size=1)
    assert not rule.admits(running, Demand(100, 90), num_blocks=202, size=1)
    assert rule.admits([], Demand(100, 500), num_blocks=202, size=1), "an empty pool must move on"


def test_more_may_join_than_will_fit_where_some_make_room_for_others() -> None:
    running, newcomer = [Demand(100, 100)], Demand(100, 90)
    assert peak_blocks([*running, newcomer], 1) == 381
    assert not FuturePeak().admits(running, newcomer, num_blocks=320, size=1)
    assert FuturePeak(overcommit=1.2).admits(running, newcomer, num_blocks=320, size=1)
    assert not FuturePeak(overcommit=1.2).admits(running, newcomer, num_blocks=310, size=1)


@pytest.mark.parametrize("overcommit", [0.9, math.inf, math.nan])
def test_less_than_the_pool_and_no_limit_at_all_are_refused(overcommit: float) -> None:
    with pytest.raises(ValueError, match="overcommit"):
        FuturePeak(overcommit=overcommit)


def test_where_the_reservation_covers_all_it_alone_decides() -> None:
    assert WhatIsReserved().admits([Demand(10**6, 10**6)], Demand(1, 1), 1, 1)


@given(running=demands.filter(bool), newcomer=st.builds(Demand, st.integers(1, 200), st.just(9)))
def test_who_may_join_at_the_very_most_may_join_at_any_time(
    running: list[Demand], newcomer: Demand
) -> None:
    rule, all_of_them = FuturePeak(), [*running, newcomer]
    at_most = sum(demand.num_tokens + demand.num_remaining for demand in all_of_them)
    for num_blocks in range(0, 400, 7):
        if rule.admits_any(len(all_of_them), at_most, num_blocks, 16):
            assert rule.admits(running, newcomer, num_blocks, 16)
