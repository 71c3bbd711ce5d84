"""What every predictor promises, and what each is for."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from scheduling.length_bound import BoundedPredictor, Hoeffding, Padded
from scheduling.length_choice import BOUND_RULES, LENGTH_PREDICTORS, length_predictor_named
from scheduling.length_oracles import MaxTokens, NoisyOracle, Oracle
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.length_regression import OnlineRegression
from scheduling.prediction import LengthPredictor, RequestFeatures

PREDICTORS: dict[str, Callable[[], LengthPredictor]] = {
    "quantiles": OnlineQuantiles,
    "small windows": lambda: OnlineQuantiles(window=3, max_groups=1),
    "regression": OnlineRegression,
    "max-tokens": MaxTokens,
    "oracle": Oracle,
    "noisy": lambda: NoisyOracle(0.5, seed=3),
    "padded": lambda: BoundedPredictor(OnlineQuantiles(), Padded(0.5)),
    "hoeffding": lambda: BoundedPredictor(OnlineRegression(), Hoeffding()),
}
LEARNERS: dict[str, Callable[[], LengthPredictor]] = {
    "quantiles": OnlineQuantiles,
    "regression": OnlineRegression,
}


def features(
    tenant: str = "t", max_tokens: int = 1000, num_prompt_tokens: int = 10
) -> RequestFeatures:
    return RequestFeatures(tenant, "standard", num_prompt_tokens, max_tokens)


@st.composite
def requests(draw: st.DrawFn) -> RequestFeatures:
    """A request, now and then with some of its answer."""
    max_tokens = draw(st.integers(1, 5000))
    return RequestFeatures(
        tenant=draw(st.sampled_from("abc")),
        request_class=draw(st.sampled_from(["batch", "interactive"])),
        num_prompt_tokens=draw(st.integers(1, 200_000)),
        max_tokens=max_tokens,
        num_output_tokens=draw(st.just(0) | st.integers(0, max_tokens - 1)),
        arrival_at_s=draw(st.none() | st.floats(0, 1e6)),
        known_output_tokens=draw(st.integers(1, max_tokens)),
    )


# Drawing requests takes longer than all predictors do.
@given(answered=st.lists(requests(), max_size=60), asked=requests())
def test_a_prediction_lies_where_the_answer_can_end(
    answered: list[RequestFeatures], asked: RequestFeatures
) -> None:
    for name, make in PREDICTORS.items():
        note(name)
        predictor = make()
        for each in answered:
            predictor.predict(each)
            assert each.known_output_tokens is not None
            predictor.observe(each, each.known_output_tokens)
        predicted = predictor.predict(asked)
        assert asked.num_output_tokens < predicted.mean <= predicted.bound <= asked.max_tokens
        assert predicted.spread >= 0


@given(answered=st.lists(requests(), max_size=40))
def test_the_same_answers_give_the_same_predictions(answered: list[RequestFeatures]) -> None:
    for name, make in PREDICTORS.items():
        note(name)
        one, other = make(), make()
        for each in answered:
            assert one.predict(each) == other.predict(each)
            assert each.known_output_tokens is not None
            one.observe(each, each.known_output_tokens)
            other.observe(each, each.known_output_tokens)


@pytest.mark.parametrize("make", [OnlineQuantiles, OnlineRegression])
@given(answered=st.lists(requests(), max_size=60), asked=requests())
def test_a_larger_quantile_never_gives_a_smaller_bound(
    make: type[OnlineQuantiles] | type[OnlineRegression],
    answered: list[RequestFeatures],
    asked: RequestFeatures,
) -> None:
    bounds = []
    for share in (0.5, 0.8, 0.9, 0.99):
        predictor = make(bound_quantile=share)
        for each in answered:
            assert each.known_output_tokens is not None
            predictor.observe(each, each.known_output_tokens)
        bounds.append(predictor.predict(asked).bound)
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("name", LEARNERS)
def test_without_experience_nothing_is_under_predicted(name: str) -> None:
    assert LEARNERS[name]().predict(features(max_tokens=77)).bound == 77


@pytest.mark.parametrize("name", LEARNERS)
def test_the_bound_covers_its_share_of_answers_to_come(name: str) -> None:
    rng = random.Random(11)
    predictor = LEARNERS[name]()
    num_covered = 0
    for number in range(2000):
        tenant, scale = rng.choice([("a", 50), ("b", 400)])
        asked = features(tenant, 8000, rng.randint(1, 4000))
        length = min(7999, 1 + int(rng.lognormvariate(0, 0.7) * scale))
        num_covered += number >= 500 and predictor.predict(asked).bound >= length
        predictor.observe(asked, length)
    assert 0.88 <= num_covered / 1500 <= 0.94


@pytest.mark.parametrize("name", LEARNERS)
def test_tenants_are_told_apart_once_they_are_known(name: str) -> None:
    predictor = LEARNERS[name]()
    for _ in range(1000):
        predictor.observe(features("short"), 5)
        predictor.observe(features("long"), 500)
    assert predictor.predict(features("short")).bound <= 10
    assert 500 <= predictor.predict(features("long")).bound <= 530
    if name == "quantiles":
        assert predictor.predict(features("new")).bound >= 500


@pytest.mark.parametrize("name", LEARNERS)
def test_old_answers_are_forgotten(name: str) -> None:
    predictor = LEARNERS[name]()
    for length in [900] * 1000 + [10] * 1000:
        predictor.observe(features(), length)
    assert predictor.predict(features()).bound <= {"quantiles": 10, "regression": 20}[name]


@pytest.mark.parametrize("name", LEARNERS)
def test_an_answer_under_way_is_predicted_from_those_that_became_longer(name: str) -> None:
    predictor = LEARNERS[name]()
    for length in [*[20] * 9, 400] * 40:
        predictor.observe(features(), length)
    new = predictor.predict(features())
    old = predictor.predict(RequestFeatures("t", "standard", 10, 1000, num_output_tokens=100))
    assert new.mean < 100
    assert 300 < old.mean <= old.bound


@pytest.mark.parametrize("name", LEARNERS)
def test_answers_cut_at_a_small_limit_say_only_that_they_were_longer(name: str) -> None:
    """Half of the callers allow 100 tokens; answers are 50 or 800 long."""
    predictor = LEARNERS[name]()
    for number in range(2000):
        max_tokens = (100, 1000)[number % 2]
        length = (50, 800)[number // 2 % 2]
        predictor.observe(features(max_tokens=max_tokens), min(length, max_tokens))
    patient = predictor.predict(features(max_tokens=1000))
    assert 350 < patient.mean < 500, "half of all answers have 800 tokens, not a quarter"
    assert 800 <= patient.bound <= 900
    hasty = predictor.predict(features(max_tokens=100))
    assert 65 <= hasty.mean <= 85
    assert hasty.bound == 100


@pytest.mark.parametrize("name", LEARNERS)
def test_where_all_answers_were_cut_a_larger_limit_is_fully_used(name: str) -> None:
    predictor = LEARNERS[name]()
    for _ in range(100):
        predictor.observe(features(max_tokens=64), 64)
    assert predictor.predict(features(max_tokens=64)).bound == 64
    assert predictor.predict(features(max_tokens=2000)).bound == 2000


def test_regression_tells_prompts_apart_that_share_tenant_and_class() -> None:
    rng = random.Random(5)
    predictor = OnlineRegression()
    for _ in range(2000):
        num_prompt = rng.randint(10, 4000)
        length = max(1, int(num_prompt / 8 * rng.uniform(0.8, 1.2)))
        predictor.observe(features(num_prompt_tokens=num_prompt), length)
    for num_prompt in (80, 800, 3200):
        predicted = predictor.predict(features(num_prompt_tokens=num_prompt))
        assert predicted.mean == pytest.approx(num_prompt / 8, rel=0.25)
        assert predicted.bound < 2 * num_prompt / 8


def test_the_oracle_knows_and_says_so_when_it_does_not() -> None:
    known = RequestFeatures("t", "standard", 10, 1000, known_output_tokens=321)
    predicted = Oracle().predict(known)
    assert (predicted.mean, predicted.bound) == (321, 321)
    with pytest.raises(ValueError, match="known_output_tokens"):
        Oracle().predict(features())


@given(st.integers(1, 5000), st.floats(0, 0.99), st.integers(0, 5))
def test_the_noisy_oracle_errs_within_its_error_and_its_bound_holds(
    length: int, relative_error: float, seed: int
) -> None:
    asked = RequestFeatures("t", "standard", 10, 5000, known_output_tokens=length)
    predicted = NoisyOracle(relative_error, seed).predict(asked)
    assert abs(predicted.mean - length) <= relative_error * length + 0.5
    assert predicted.bound >= length


def test_the_noisy_oracle_errs_alike_in_any_order() -> None:
    asked = [
        RequestFeatures("t", "standard", 10, 5000, arrival_at_s=float(at), known_output_tokens=999)
        for at in range(20)
    ]
    oracle = NoisyOracle(0.3, seed=1)
    in_order = [oracle.predict(each).mean for each in asked]
    assert [oracle.predict(each).mean for each in reversed(asked)] == in_order[::-1]
    assert len(set(in_order)) > 10
    assert [NoisyOracle(0.3, seed=2).predict(each).mean for each in asked] != in_order


def test_all_predictors_and_rules_have_names_and_go_together() -> None:
    asked = RequestFeatures("t", "standard", 10, 100, known_output_tokens=30)
    for name in LENGTH_PREDICTORS:
        assert length_predictor_named(name).predict(asked).bound <= 100
        for rule in BOUND_RULES:
            predictor = length_predictor_named(name, rule)
            predictor.observe(asked, 30)
            assert predictor.predict(asked).bound <= 100
    with pytest.raises(KeyError):
        length_predictor_named("clairvoyant")


@pytest.mark.parametrize("quantile", [0.0, 1.0])
@pytest.mark.parametrize("make", [OnlineQuantiles, OnlineRegression])
def test_a_quantile_that_means_nothing_is_refused(
    make: type[OnlineQuantiles] | type[OnlineRegression], quantile: float
) -> None:
    with pytest.raises(ValueError, match="bound_quantile"):
        make(bound_quantile=quantile)
