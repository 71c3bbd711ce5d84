"""Arrival times that are drawn."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.traces.arrivals import bucket_width, poisson_arrivals, spread_in_buckets

STAMPS = st.lists(st.integers(0, 20), min_size=1, max_size=60).map(
    lambda steps: [3.0 * step for step in sorted(steps)]
)


@given(stamps=STAMPS, seed=st.integers(0, 99))
def test_a_request_stays_inside_its_step_and_order_is_kept(stamps: list[float], seed: int) -> None:
    spread = spread_in_buckets(stamps, 3.0, random.Random(seed))

    assert spread == sorted(spread)
    assert all(0 <= new - old < 3 for new, old in zip(spread, stamps, strict=True))


def test_no_request_is_moved_beyond_the_next_stamp() -> None:
    spread = spread_in_buckets([0.0] * 50 + [1.0] * 50, 3.0, random.Random(0))

    assert max(spread[:50]) < 1.0 <= min(spread[50:])


def test_a_clock_is_coarse_if_most_requests_share_their_stamp() -> None:
    assert bucket_width([0.0, 0.0, 0.0, 3.0, 3.0, 5.999, 5.999, 5.999]) == pytest.approx(2.999)
    assert bucket_width([0.0, 1.0, 1.0, 2.0]) is None
    assert bucket_width([0.0, 0.0, 0.0]) is None
    assert bucket_width([0.0]) is None


def test_poisson_arrivals_have_the_rate_and_depend_on_the_seed_alone() -> None:
    arrivals = poisson_arrivals(10_000, 4.0, random.Random(1))

    assert arrivals == sorted(arrivals)
    assert 2400 < arrivals[-1] < 2600
    assert arrivals == poisson_arrivals(10_000, 4.0, random.Random(1))
