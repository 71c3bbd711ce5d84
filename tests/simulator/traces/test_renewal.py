"""Renewal processes in windows."""

import random
from itertools import pairwise
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.traces.renewal import Window, gaps_named, renewal_in_windows


@pytest.mark.parametrize("family", ["Gamma", "Weibull"])
@pytest.mark.parametrize("cv", [0.0, 0.3, 1.0, 4.0])
def test_gaps_have_mean_one_and_the_wanted_variation(family: str, cv: float) -> None:
    gaps = gaps_named(family, cv)
    rng = random.Random(8)

    drawn = [gaps.draw(rng) for _ in range(100_000)]

    assert mean(drawn) == pytest.approx(1, rel=0.05)
    assert pstdev(drawn) == pytest.approx(cv, rel=0.1, abs=0.02)


@given(
    starts=st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=6).map(sorted),
    cv=st.floats(0, 5),
    rate=st.floats(0.01, 20),
    seed=st.integers(0, 99),
)
def test_arrivals_ascend_and_lie_inside_their_window(
    starts: list[int], cv: float, rate: float, seed: int
) -> None:
    gaps = gaps_named("Gamma", cv)
    windows = [Window(10.0 * k, 10.0 * k + 10, rate, gaps, k) for k in starts]

    arrivals = list(renewal_in_windows(windows, random.Random(seed)))

    assert all(10 * mark <= arrival_s < 10 * mark + 10 for arrival_s, mark in arrivals)
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(arrivals))


def test_the_process_stands_still_between_windows() -> None:
    gaps = gaps_named("Gamma", 0.0)
    windows = [Window(0.0, 10.5, 1.0, gaps, 0), Window(100.0, 110.5, 2.0, gaps, 1)]

    arrivals = [arrival_s for arrival_s, _ in renewal_in_windows(windows, random.Random(0))]

    across = arrivals[10:12]
    # Half a gap or so passes before the pause, the rest of it at twice the rate behind it.
    assert (10.5 - across[0]) + 2 * (across[1] - 100.0) == pytest.approx(1, abs=0.05)
