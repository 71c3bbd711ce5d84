"""The report says what came of the last predictions, exactly, and for so many tenants only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.length_calibration import Calibration, CalibrationLog
from scheduling.prediction import RequestFeatures, ResponseLength


def features(tenant: str = "t", max_tokens: int = 100) -> RequestFeatures:
    return RequestFeatures(tenant, "standard", 10, max_tokens)


def test_without_answers_the_report_is_empty() -> None:
    log = CalibrationLog()
    assert log.report() == Calibration()
    assert log.report_by_tenant() == {}


def test_the_report_of_a_few_answers_by_hand() -> None:
    log = CalibrationLog(bound_quantile=0.9)
    log.add(features(), ResponseLength(10, 20), 10)
    log.add(features(), ResponseLength(10, 20), 40)
    log.add(features(), ResponseLength(50, 80), 100)
    report = log.report()
    assert (report.num_answers, report.num_cut) == (3, 1)
    assert report.covered_share == pytest.approx(1 / 3)
    assert report.mean_absolute_error == pytest.approx((0 + 30 + 50) / 3)
    assert report.mean_relative_error == pytest.approx((0 + 0.75 + 0.5) / 3, abs=1e-5)
    assert report.pinball_loss == pytest.approx((0.1 * 10 + 0.9 * 20 + 0.9 * 20) / 3)
    assert report.mean_over_allocation == pytest.approx(10 / 3)
    assert report.allocation_factor == pytest.approx(120 / 150)


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 50), st.integers(1, 100)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 20),
)
def test_only_the_last_answers_count(outcomes: list[tuple[int, int, int]], window: int) -> None:
    all_of_them, last = CalibrationLog(window=window), CalibrationLog()
    for mean, margin, length in outcomes:
        all_of_them.add(features(), ResponseLength(mean, mean + margin), length)
    for mean, margin, length in outcomes[-window:]:
        last.add(features(), ResponseLength(mean, mean + margin), length)
    assert all_of_them.report() == last.report()


def test_tenants_are_told_apart_and_bounded() -> None:
    log = CalibrationLog(max_tenants=2)
    for tenant, length in (("a", 10), ("b", 20), ("a", 10), ("c", 30)):
        log.add(features(tenant), ResponseLength(10, 25), length)
    by_tenant = log.report_by_tenant()
    assert list(by_tenant) == ["a", "c"]
    assert by_tenant["a"].num_answers == 2
    assert by_tenant["c"].covered_share == 0
    assert log.report().num_answers == 4


@pytest.mark.parametrize(("quantile", "window", "tenants"), [(1, 1, 1), (0.9, 0, 1), (0.9, 1, 0)])
def test_a_setting_that_means_nothing_is_refused(
    quantile: float, window: int, tenants: int
) -> None:
    with pytest.raises(ValueError, match="must be"):
        CalibrationLog(quantile, window, tenants)
