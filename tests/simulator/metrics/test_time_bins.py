"""Figures over time: means are weighted by time, bins double their width and lose nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.metrics.time_bins import FIRST_WIDTH_S, MAX_BINS, StepSeries, TimeBins


@given(
    steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=1, max_size=60),
    from_s=st.sampled_from([0.0, 3.7, 50.0]),
)
def test_the_mean_is_weighted_by_how_long_a_value_held(
    steps: list[tuple[float, float]], from_s: float
) -> None:
    series, now, area = StepSeries(1, from_s), 0.0, 0.0
    value = 0.0
    for lasted_s, next_value in steps:
        area += value * max(0.0, now + lasted_s - max(now, from_s))
        now += lasted_s
        series.hold(now, [next_value])
        value = next_value
    expected = area / (now - from_s) if now > from_s else 0.0
    assert series.mean(0) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(steps=st.lists(st.tuples(st.floats(0, 300), st.floats(0, 1000)), min_size=1, max_size=60))
def test_bins_hold_everything_whatever_their_width(steps: list[tuple[float, float]]) -> None:
    series, now = StepSeries(1), 0.0
    for lasted_s, value in steps:
        now += lasted_s
        series.hold(now, [value])
    shown = series.series(0)
    assert len(shown.values) <= MAX_BINS
    covered = [shown.width_s] * (len(shown.values) - 1)
    covered.append(now - sum(covered))
    area = math.fsum(v * s for v, s in zip(shown.values, covered, strict=False))
    assert area == pytest.approx(series.total(0), rel=1e-6, abs=1e-6)


def test_a_step_is_seen_where_it_happened() -> None:
    series = StepSeries(2)
    series.hold(1.0, [4.0, 1.0])
    series.change(2.0, [-4.0])
    series.advance(4.0)
    shown = series.series(0)
    by_instant = dict(zip(shown.middles_s, shown.values, strict=True))
    assert {value for at_s, value in by_instant.items() if 1 < at_s < 2} == {4.0}
    assert {value for at_s, value in by_instant.items() if not 1 < at_s < 2} == {0.0}
    assert series.mean(1) == pytest.approx(0.75)


def test_the_last_bin_is_a_mean_over_the_part_that_has_passed() -> None:
    series = StepSeries(1)
    series.hold(0.0, [6.0])
    series.advance(2.5 * FIRST_WIDTH_S)
    assert series.series(0).values == (6.0, 6.0, 6.0)


def test_time_does_not_run_backwards() -> None:
    series = StepSeries(1)
    series.advance(2.0)
    with pytest.raises(AssertionError, match="backwards"):
        series.hold(1.0, [1.0])


def test_columns_grow_with_the_run_and_keep_their_sums() -> None:
    bins = TimeBins(2)
    for second in range(2000):
        bins.put(float(second), (2.0, 1.0))
    assert bins.width_s * MAX_BINS > 2000
    assert (sum(bins.columns[0]), sum(bins.columns[1])) == (4000.0, 2000.0)
    assert len(bins.columns[0]) == MAX_BINS
