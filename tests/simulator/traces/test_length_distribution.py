"""Lengths of which mean and percentiles are known."""

import random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.traces.length_distribution import fitted

PERCENTILES = st.lists(st.floats(1, 50_000), min_size=3, max_size=3).map(sorted)


@given(percentiles=PERCENTILES, factor=st.floats(0.05, 20))
def test_percentiles_are_kept_whatever_the_mean(percentiles: list[float], factor: float) -> None:
    p50, p90, p99 = percentiles
    lengths = fitted(p50 * factor, p50, p90, p99)

    assert [lengths.at(share) for share in (0.5, 0.9, 0.99)] == [round(p) for p in percentiles]
    shares = [k / 200 for k in range(201)]
    drawn = [lengths.at(share) for share in shares]
    assert drawn == sorted(drawn)
    assert drawn[0] >= 1


@pytest.mark.parametrize(
    ("published_mean", "p50", "p90", "p99"),
    [
        (427.5, 275, 380, 4826),  # a long tail
        (130.3, 206, 214, 222),  # two kinds of prompts
        (51.8, 21, 103, 511),
        (106.0, 100, 110, 120),  # a few far longer than the 99th percentile
        (21.0, 21, 21, 21),  # always the same
        (16123.8, 15930, 21584, 27224),
    ],
)
def test_the_mean_is_kept_where_the_percentiles_allow_it(
    published_mean: float, p50: float, p90: float, p99: float
) -> None:
    lengths = fitted(published_mean, p50, p90, p99)
    rng = random.Random(3)

    drawn = mean(lengths.at(rng.random()) for _ in range(50_000))

    assert drawn == pytest.approx(published_mean, rel=0.03)
