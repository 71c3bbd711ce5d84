"""Response lengths: never above max_tokens, covering the asked share, bounded in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.prediction import OnlineQuantiles, RequestFeatures


def features(tenant: str = "t", max_tokens: int = 1000) -> RequestFeatures:
    return RequestFeatures(tenant, "standard", 10, max_tokens)


def test_without_experience_nothing_is_under_predicted() -> None:
    assert OnlineQuantiles().predict(features(max_tokens=77)).bound == 77


@given(st.lists(st.integers(1, 500), min_size=20, max_size=300), st.integers(1, 600))
def test_the_bound_covers_its_share_of_what_was_seen(lengths: list[int], max_tokens: int) -> None:
    predictor = OnlineQuantiles(bound_quantile=0.9, window=1000)
    for length in lengths:
        predictor.observe(features(), length)
    predicted = predictor.predict(features(max_tokens=max_tokens))
    assert 1 <= predicted.mean <= predicted.bound <= max_tokens
    covered = sum(min(length, max_tokens) <= predicted.bound for length in lengths)
    assert covered >= 0.9 * len(lengths)


def test_old_answers_are_forgotten() -> None:
    predictor = OnlineQuantiles(window=32)
    for length in [900] * 100 + [10] * 32:
        predictor.observe(features(), length)
    assert predictor.predict(features()).bound == 10


def test_tenants_are_told_apart_once_they_are_known() -> None:
    predictor = OnlineQuantiles(min_samples=4)
    for _ in range(8):
        predictor.observe(features("short"), 5)
        predictor.observe(features("long"), 500)
    assert predictor.predict(features("short")).bound == 5
    assert predictor.predict(features("long")).bound == 500
    assert predictor.predict(features("new")).bound == 500


def test_the_number_of_groups_is_bounded() -> None:
    predictor = OnlineQuantiles(min_samples=1, max_groups=2)
    for tenant, length in (("a", 1), ("b", 2), ("c", 3)):
        predictor.observe(features(tenant), length)
    assert predictor.predict(features("c")).mean == 3
    assert predictor.predict(features("a")).mean == 2, "forgotten: the mean of all answers"


@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_quantile_that_means_nothing_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match="bound_quantile"):
        OnlineQuantiles(bound_quantile=quantile)
