"""The search for the highest rate, against systems that are functions of the rate."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.rate_search import Ending, FoundRate, RateSearch, highest_rate


def limited(limit: float) -> Callable[[float], float]:
    """Serves everybody up to a rate and nobody beyond."""
    return lambda rate: 1.0 if rate <= limit else 0.0


def check(found: FoundRate, limit: float, settings: RateSearch) -> None:
    assert found.ending is Ending.FOUND
    assert found.rate is not None
    assert found.rate <= limit < found.rate * (1 + settings.tolerance) * (1 + 1e-12)
    assert found.is_monotone


@given(st.floats(0.01, 100), st.floats(0.1, 10), st.floats(0.01, 0.3))
def test_the_limit_of_a_monotone_system_is_found_within_the_tolerance(
    limit: float, start: float, tolerance: float
) -> None:
    settings = RateSearch(start=start, tolerance=tolerance, max_probes=60)
    check(highest_rate(limited(limit), settings), limit, settings)


def test_attainment_that_falls_slowly_is_cut_at_the_target() -> None:
    settings = RateSearch(target=0.9, tolerance=0.01)
    # 0.9 at 3.
    found = highest_rate(lambda rate: math.exp(-rate * -math.log(0.9) / 3), settings)
    check(found, 3.0, settings)


def test_few_probes_are_enough() -> None:
    found = highest_rate(limited(5.3), RateSearch())
    assert len(found.probes) <= 11
    rates = [probe.rate for probe in found.probes]
    assert len(set(rates)) == len(rates), "a rate was tried twice"


def test_a_dip_does_not_end_the_search_too_low() -> None:
    # What arrives at this rate happens to meet where it hurts.
    found = highest_rate(lambda rate: float(rate <= 8 and not 1.9 < rate < 2.1), RateSearch())
    assert found.rate is not None
    assert 8 / 1.05 <= found.rate <= 8
    assert not found.is_monotone


def test_a_system_without_a_limit_ends_the_search_at_the_highest_rate_allowed() -> None:
    found = highest_rate(lambda rate: 1.0, RateSearch(start=2.0, max_factor=16))
    assert (found.ending, found.rate) == (Ending.NO_LIMIT, 32.0)


def test_a_system_that_never_serves_ends_the_search_at_the_lowest_rate_allowed() -> None:
    # However little the search may go up.
    settings = RateSearch(start=2.0, max_factor=2, max_divisor=16)
    found = highest_rate(lambda rate: 0.5, settings)
    assert (found.ending, found.rate) == (Ending.NOTHING_SERVES, None)
    assert min(probe.rate for probe in found.probes) == 2 / 16


@pytest.mark.parametrize("max_probes", [1, 2, 3, 4, 7])
def test_no_more_probes_are_taken_than_allowed(max_probes: int) -> None:
    settings = RateSearch(tolerance=0.001, max_probes=max_probes)
    found = highest_rate(limited(3.3), settings)
    assert len(found.probes) == max_probes
    assert found.ending is Ending.OUT_OF_PROBES
    assert found.rate is not None
    assert found.rate <= 3.3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 25))
def test_the_search_ends_whatever_the_system_says(answers: list[float], max_probes: int) -> None:
    remaining = iter(answers * 25)
    settings = RateSearch(max_probes=max_probes)
    found = highest_rate(lambda rate: next(remaining), settings)
    assert 1 <= len(found.probes) <= max_probes
    served = [probe.rate for probe in found.probes if probe.attainment >= settings.target]
    assert found.rate == max(served, default=None)
