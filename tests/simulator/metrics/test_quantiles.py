"""Percentiles are the ones that Python's statistics compute, and the histogram's are near them."""

import statistics
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.metrics.distribution import Distribution
from simulator.metrics.log_histogram import MAX_RELATIVE_ERROR, LogHistogram
from simulator.metrics.quantiles import mean_of_longest, quantile

DURATIONS = st.floats(1e-6, 1e6)


@given(values=st.lists(DURATIONS, min_size=2, max_size=200))
def test_percentiles_are_those_of_the_statistics_module(values: list[float]) -> None:
    ordered = sorted(values)
    expected = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (1, 10, 50, 90, 99):
        assert quantile(ordered, percent / 100) == pytest.approx(expected[percent - 1], rel=1e-9)


def test_the_ends_of_a_distribution_are_its_smallest_and_largest_value() -> None:
    assert quantile([1.0, 5.0, 7.0], 0.0) == 1.0
    assert quantile([1.0, 5.0, 7.0], 1.0) == 7.0
    assert quantile([3.0], 0.99) == 3.0


@pytest.mark.parametrize(
    ("num_values", "num_longest"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (101, 11)]
)
def test_the_longest_tenth_is_rounded_up(num_values: int, num_longest: int) -> None:
    ordered = [float(number) for number in range(num_values)]
    expected = statistics.fmean(ordered[-num_longest:])
    assert mean_of_longest(ordered, 0.1) == pytest.approx(expected)


@given(values=st.lists(st.one_of(DURATIONS, st.just(0.0)), min_size=1, max_size=300))
def test_the_histogram_is_off_by_no_more_than_it_says(values: list[float]) -> None:
    histogram = LogHistogram()
    histogram.add_all(array("f", values))
    exact = sorted(values)
    counted = histogram.ordered(exact[0], exact[-1])
    assert len(counted) == len(histogram) == len(exact)
    for rank, value in enumerate(exact):
        assert counted[rank] == pytest.approx(value, rel=MAX_RELATIVE_ERROR, abs=0)


@given(
    parts=st.lists(st.lists(DURATIONS, max_size=40), min_size=1, max_size=6),
    max_exact=st.sampled_from([0, 7, 10_000]),
)
def test_a_distribution_says_how_exact_it_is(parts: list[list[float]], max_exact: int) -> None:
    distribution = Distribution(max_exact)
    for number, part in enumerate(parts):
        if number % 2:
            distribution.add_all(part)
        else:
            for value in part:
                distribution.add(value)
    values = sorted(value for part in parts for value in part)
    figures = distribution.figures()
    if not values:
        assert figures is None
        return
    assert figures is not None
    assert distribution.count == len(values)
    assert figures.mean == pytest.approx(statistics.fmean(values))
    assert figures.max == values[-1]
    error = distribution.relative_error
    assert error == (MAX_RELATIVE_ERROR if len(values) > max_exact else 0.0)
    for share, found in ((0.5, figures.p50), (0.9, figures.p90), (0.99, figures.p99)):
        assert found == pytest.approx(quantile(values, share), rel=max(error, 1e-12))


@given(
    first=st.lists(DURATIONS, max_size=30),
    second=st.lists(DURATIONS, max_size=30),
    bounds=st.tuples(st.sampled_from([0, 10, 100]), st.sampled_from([0, 10, 100])),
)
def test_merged_distributions_hold_the_values_of_both(
    first: list[float], second: list[float], bounds: tuple[int, int]
) -> None:
    one, other = Distribution(bounds[0]), Distribution(bounds[1])
    one.add_all(first)
    other.add_all(second)
    one.merge(other)
    values = sorted(first + second)
    assert one.count == len(values)
    if values:
        assert one.mean == pytest.approx(statistics.fmean(values))
        assert (one.smallest, one.largest) == (values[0], values[-1])
        middle = quantile(values, 0.5)
        assert one.quantiles([0.5])[0] == pytest.approx(middle, rel=MAX_RELATIVE_ERROR)


def test_a_million_values_need_no_more_memory_than_a_thousand_different_ones() -> None:
    distribution = Distribution(max_exact=1000)
    for _ in range(20):
        distribution.add_all(0.01 + number / 1e6 for number in range(5000))
    buckets = distribution.ordered()
    assert len(buckets) == 100_000
    # From 10 ms to 15 ms there is less than one doubling.
    assert len({buckets[rank] for rank in range(0, 100_000, 10)}) <= 128
