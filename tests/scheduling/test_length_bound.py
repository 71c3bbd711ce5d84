"""From a prediction to an allocation: padding, the bound by Hoeffding, and what they rest on."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.length_bound import (
    ArrivalRate,
    BoundedPredictor,
    Hoeffding,
    LengthErrors,
    Padded,
    PredictedQuantile,
)
from scheduling.length_oracles import NoisyOracle
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.prediction import RequestFeatures, ResponseLength

MAX_TOKENS = 4000


def features(tenant: str = "t", arrival_at_s: float | None = None) -> RequestFeatures:
    return RequestFeatures(tenant, "standard", 10, MAX_TOKENS, arrival_at_s=arrival_at_s)


class Always:
    """Predicts the same for everybody."""

    def __init__(self, mean: int) -> None:
        self._mean = mean

    def predict(self, features: RequestFeatures) -> ResponseLength:
        return ResponseLength(self._mean, self._mean)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        pass


# PAPERS 2.4.1
@pytest.mark.parametrize("arrivals_per_s", [0.0, 10.0, 1000.0, 100_000.0])
@pytest.mark.parametrize("shape", ["even", "two values", "mostly none"])
def test_under_predicted_answers_stay_below_the_bound_as_often_as_promised(
    shape: str, arrivals_per_s: float
) -> None:
    rng = random.Random(f"{shape} {arrivals_per_s}")
    errors_by_shape: dict[str, Callable[[], int]] = {
        "even": lambda: rng.randint(-300, 300),
        "two values": lambda: rng.choice((-200, 200)),
        "mostly none": lambda: rng.choice((0, 0, 0, 0, 0, 0, 500)) - 71,
    }
    errors = errors_by_shape[shape]
    rule = Hoeffding(alpha=0.95, beta=0.001)
    seen = LengthErrors(window=512)
    for _ in range(512):
        seen.add(features(), errors())
    spread = seen.spread()
    assert spread is not None
    predicted = ResponseLength(1000, 1000, spread=spread, is_low=True)
    bound = rule.bound(predicted, MAX_TOKENS, arrivals_per_s)
    held_out = [1000 + errors() for _ in range(5000)]
    exceeding = sum(length > bound for length in held_out) / len(held_out)
    assert exceeding <= 1 - rule.confidence(arrivals_per_s)


# PAPERS 2.4.1, the other direction: it guards against waste, not against overrun.
def test_over_predicted_answers_get_less_than_the_mean() -> None:
    rule = Hoeffding()
    high = ResponseLength(1000, 1000, spread=300, is_low=False)
    low = ResponseLength(1000, 1000, spread=300, is_low=True)
    below = 1000 - rule.bound(high, MAX_TOKENS, 5.0)
    above = rule.bound(low, MAX_TOKENS, 5.0) - 1000
    assert 0 < below <= above <= below + 1


# PAPERS 2.4.1
@given(
    st.integers(1, MAX_TOKENS),
    st.integers(1, MAX_TOKENS),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
)
def test_the_bound_falls_as_more_requests_arrive(
    mean: int, spread: int, rates: list[float]
) -> None:
    predicted = ResponseLength(mean, mean, spread=spread, is_low=True)
    calm, busy = (Hoeffding().bound(predicted, MAX_TOKENS, rate) for rate in sorted(rates))
    assert busy <= calm


# PAPERS 2.4.1
def test_a_burst_of_arrivals_lowers_the_bound_that_is_given() -> None:
    def bound_at(arrivals_per_s: float) -> int:
        predictor = BoundedPredictor(Always(1000), Hoeffding(alpha=0.95, beta=0.01))
        for length in (990, 1100, 1200):
            predictor.observe(features(), length)
        for number in range(3000):
            predicted = predictor.predict(features(arrival_at_s=number / arrivals_per_s))
        assert predicted.is_low
        assert predicted.spread == 210
        return predicted.bound

    assert 1000 < bound_at(1000.0) < bound_at(10.0)


@given(st.integers(1, MAX_TOKENS), st.integers(0, MAX_TOKENS), st.floats(0.01, 0.98))
def test_more_confidence_never_lowers_the_bound_of_an_under_predicted_answer(
    mean: int, spread: int, alpha: float
) -> None:
    predicted = ResponseLength(mean, mean, spread=spread, is_low=True)
    less, more = (Hoeffding(each).bound(predicted, MAX_TOKENS, 1.0) for each in (alpha, 0.99))
    assert mean <= less <= more


@given(st.integers(1, MAX_TOKENS), st.floats(0, 4), st.floats(0, 4), st.integers(1, 64))
def test_padding_covers_the_mean_grows_with_the_share_and_ends_on_a_quantum(
    mean: int, one: float, other: float, quantum: int
) -> None:
    predicted = ResponseLength(mean, mean)
    less, more = (
        Padded(each, quantum).bound(predicted, MAX_TOKENS, 0.0) for each in sorted((one, other))
    )
    assert mean * (1 + min(one, other)) <= less <= more
    assert less % quantum == 0


def test_like_predictions_are_padded_to_equal_bounds() -> None:
    rule = Padded(0.25, quantum_tokens=16)
    bounds = {rule.bound(ResponseLength(m, m), MAX_TOKENS, 0.0) for m in range(103, 115)}
    assert bounds == {144}


def test_the_predicted_quantile_is_left_alone() -> None:
    plain, ruled = OnlineQuantiles(), BoundedPredictor(OnlineQuantiles(), PredictedQuantile())
    for length in range(1, 400):
        plain.observe(features(), length)
        ruled.observe(features(), length)
    assert ruled.predict(features()).bound == plain.predict(features()).bound


def test_direction_and_range_are_learned_from_the_errors() -> None:
    rng = random.Random(3)
    predictor = BoundedPredictor(Always(500), PredictedQuantile())
    unknown = predictor.predict(features("new"))
    assert (unknown.is_low, unknown.spread) == (True, MAX_TOKENS)
    for _ in range(200):
        predictor.observe(features("longer"), rng.randint(450, 900))
        predictor.observe(features("shorter"), rng.randint(100, 510))
    assert predictor.predict(features("longer")).is_low
    assert not predictor.predict(features("shorter")).is_low
    assert 780 <= predictor.predict(features("longer")).spread <= 800


@given(st.lists(st.integers(-5000, 5000), min_size=2, max_size=100), st.integers(2, 20))
def test_the_range_is_that_of_the_last_errors(errors: list[int], window: int) -> None:
    seen = LengthErrors(window)
    for error in errors:
        seen.add(features(), error)
    assert seen.spread() == max(errors[-window:]) - min(errors[-window:])


def test_errors_of_many_tenants_are_bounded() -> None:
    seen = LengthErrors(max_groups=2)
    for tenant in ("a", "b", "c"):
        for _ in range(100):
            seen.add(features(tenant), -10)
    assert [seen.is_low(features(tenant)) for tenant in "abc"] == [True, False, False]


def test_the_noise_of_an_oracle_is_covered_once_it_has_been_seen() -> None:
    rng = random.Random(9)
    predictor = BoundedPredictor(NoisyOracle(0.4, seed=2), Padded(0.7))
    for number in range(500):
        length = rng.randint(50, 2000)
        asked = RequestFeatures(
            "t", "standard", 10, 4000, arrival_at_s=float(number), known_output_tokens=length
        )
        assert predictor.predict(asked).bound >= length
        predictor.observe(asked, length)


@pytest.mark.parametrize("per_s", [0.5, 20.0, 400.0])
def test_the_arrival_rate_is_found(per_s: float) -> None:
    rng = random.Random(1)
    rate, now = ArrivalRate(memory_s=30.0), 1e5
    for _ in range(int(200 * per_s)):
        now += rng.expovariate(per_s)
        rate.arrived(now)
    assert rate.per_s(now) == pytest.approx(per_s, rel=0.5)
    assert rate.per_s(now + 300.0) < 0.01 * per_s


def test_the_arrival_rate_begins_low_and_survives_a_clock_that_stands_or_runs_back() -> None:
    rate = ArrivalRate(memory_s=10.0)
    assert rate.per_s(5.0) == 0
    rate.arrived(5.0)
    assert rate.per_s(5.0) < 1.1
    rate.arrived(5.0)
    rate.arrived(4.0)
    assert 0 < rate.per_s(4.0) < 4


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Padded(-0.1), "padding"),
        (lambda: Padded(0.1, 0), "quantum_tokens"),
        (lambda: Hoeffding(1.0), "alpha"),
        (lambda: Hoeffding(0.9, -1.0), "beta"),
        (lambda: ArrivalRate(0.0), "memory_s"),
        (lambda: LengthErrors(1), "window"),
        (lambda: LengthErrors(2, 0), "max_groups"),
        (lambda: NoisyOracle(1.0, 0), "relative_error"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(make: object, what: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=what):
        make()
