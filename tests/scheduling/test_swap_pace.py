"""Copies are expected to take what copies took, and a slow one is forgiven in time."""

import math

import pytest

from scheduling.swap_pace import SwapPace

BLOCK_BYTES, BYTES_PER_S = 1000, 1e6


def test_before_the_first_copy_the_assumed_rate_counts_for_both_ways() -> None:
    pace = SwapPace(BLOCK_BYTES, BYTES_PER_S)
    assert pace.out_s(8) == pace.back_s(8) == pytest.approx(0.008)
    assert pace.out_s(0) == 0


def test_each_way_follows_its_own_copies() -> None:
    pace = SwapPace(BLOCK_BYTES, BYTES_PER_S)
    for _ in range(40):
        pace.observe(10, 0.1, is_out=True)
        pace.observe(10, 0.02, is_out=False)
    assert pace.out_s(1) == pytest.approx(0.01, rel=0.01)
    assert pace.back_s(1) == pytest.approx(0.002, rel=0.01)


def test_the_first_copy_of_all_is_believed_in_part() -> None:
    pace = SwapPace(BLOCK_BYTES, BYTES_PER_S)
    pace.observe(10, 1.0, is_out=True)
    assert 0.001 < pace.out_s(1) < 0.1


def test_a_long_copy_counts_for_more_than_a_short_one() -> None:
    pace = SwapPace(BLOCK_BYTES, BYTES_PER_S)
    for _ in range(40):
        pace.observe(99, 0.099, is_out=True)
        pace.observe(1, 0.1, is_out=True)
    assert pace.out_s(1) == pytest.approx(0.002, rel=0.5)


def test_a_rate_that_keeps_copies_away_goes_back_to_the_assumed_one() -> None:
    pace = SwapPace(BLOCK_BYTES, BYTES_PER_S)
    pace.observe(10, 1.0, is_out=True)
    before = pace.out_s(1)
    for _ in range(200):
        pace.was_avoided()
        assert 0.001 <= pace.out_s(1) <= before
    assert pace.out_s(1) == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize(
    ("num_blocks", "seconds"), [(0, 1.0), (4, 0.0), (4, -1.0), (4, math.inf), (4, math.nan)]
)
def test_a_copy_that_says_nothing_is_passed_over(num_blocks: int, seconds: float) -> None:
    pace = SwapPace(BLOCK_BYTES, BYTES_PER_S)
    pace.observe(num_blocks, seconds, is_out=True)
    assert pace.out_s(1) == 0.001


@pytest.mark.parametrize(("block_bytes", "rate"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_a_rate_that_means_nothing_is_refused(block_bytes: int, rate: float) -> None:
    with pytest.raises(ValueError, match="bytes and a rate"):
        SwapPace(block_bytes, rate)
