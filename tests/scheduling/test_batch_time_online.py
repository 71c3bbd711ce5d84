"""Learning while serving: the error falls, outliers do not matter, memory is bounded."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_fit import MeasuredBatch, fit_error
from scheduling.batch_time_online import UNKNOWN_MACHINE, OnlineBatchTime, OnlineFitSettings

TRUTH = BatchTime(
    fixed_s=0.025,
    bends=((0, 1e-5), (256, 1.5e-4)),
    prompt_fixed_s=0.004,
    per_sequence_s=1e-4,
    per_context_token_s=3e-7,
    per_prompt_pair_s=8e-9,
    per_context_token_beside_prompt_s=1e-7,
)


def served_shape(rng: random.Random) -> BatchShape:
    num_decode = rng.randint(0, 64)
    shape = BatchShape(num_decode, num_decode * rng.randint(100, 2000))
    if num_decode == 0 or rng.random() < 0.4:
        shape = shape.with_chunk(rng.choice([0, 512]), rng.randint(16, 1024))
    return shape


def learn(
    model: OnlineBatchTime, truth: BatchTime, rng: random.Random, steps: int, noise: float = 0.03
) -> None:
    for _ in range(steps):
        shape = served_shape(rng)
        model.observe(shape, truth.seconds(shape) * rng.uniform(1 - noise, 1 + noise))


def rows_of(truth: BatchTime, seed: int) -> list[MeasuredBatch]:
    rng = random.Random(seed)
    shapes = [served_shape(rng) for _ in range(200)]
    return [MeasuredBatch(shape, truth.seconds(shape)) for shape in shapes]


def test_before_the_first_pass_the_prior_answers_and_no_error_is_known() -> None:
    model, shape = OnlineBatchTime(), BatchShape(8, 800)
    assert model.seconds(shape) == UNKNOWN_MACHINE.seconds(shape)
    assert model.mean_relative_error is None


def test_the_error_falls_while_it_learns() -> None:
    model, rng = OnlineBatchTime(settings=OnlineFitSettings(error_window=50)), random.Random(1)
    learn(model, TRUTH, rng, steps=20)
    early = model.mean_relative_error
    learn(model, TRUTH, rng, steps=1000)
    late = model.mean_relative_error
    assert early is not None
    assert late is not None
    assert late < early / 2
    assert late < 0.05
    assert fit_error(model, rows_of(TRUTH, 2)).p90 < 0.06


def test_the_error_that_is_reported_is_that_of_the_last_passes() -> None:
    model, rng = OnlineBatchTime(settings=OnlineFitSettings(error_window=64)), random.Random(11)
    assert model.error is None
    learn(model, TRUTH, rng, steps=1)
    first = model.error
    assert first is not None
    assert (first.num_passes, first.median) == (1, first.p90)
    learn(model, TRUTH, rng, steps=64 * 20)
    latest = model.error
    assert latest is not None
    assert latest.median < min(0.05, first.median)
    assert latest.median <= latest.p90 < 0.1
    assert model.num_observed - 64 < latest.num_passes <= model.num_observed, "as of the last fit"


def test_one_pass_tells_how_fast_the_machine_is() -> None:
    slow = BatchTime.from_coefficients(
        [20 * c for c in UNKNOWN_MACHINE.coefficients()], UNKNOWN_MACHINE.bend_starts
    )
    model, decode = OnlineBatchTime(), BatchShape(8, 8000)
    model.observe(decode, slow.seconds(decode))
    prompt = BatchShape().with_chunk(0, 1000)
    assert model.seconds(prompt) == pytest.approx(slow.seconds(prompt), rel=0.05)


@pytest.mark.parametrize("factor", [30.0, 0.02])
def test_passes_that_were_held_up_do_not_count(factor: float) -> None:
    model, rng = OnlineBatchTime(), random.Random(3)
    for _ in range(1500):
        shape = served_shape(rng)
        disturbed = factor if rng.random() < 0.1 else 1.0
        model.observe(shape, TRUTH.seconds(shape) * rng.uniform(0.97, 1.03) * disturbed)
    assert fit_error(model, rows_of(TRUTH, 4)).median < 0.05


def test_a_machine_that_became_slower_is_followed() -> None:
    model, rng = OnlineBatchTime(), random.Random(5)
    learn(model, TRUTH, rng, steps=1000)
    slower = BatchTime.from_coefficients([2 * c for c in TRUTH.coefficients()], TRUTH.bend_starts)
    learn(model, slower, rng, steps=2000)
    assert fit_error(model, rows_of(slower, 6)).median < 0.05


def test_an_hour_of_decoding_does_not_wash_away_what_prompts_cost() -> None:
    model, rng = OnlineBatchTime(), random.Random(7)
    learn(model, TRUTH, rng, steps=1000)
    prompt = BatchShape().with_chunk(0, 700)
    before = model.seconds(prompt)
    for step in range(5000):
        shape = BatchShape(16, 16 * (500 + step % 300))
        model.observe(shape, TRUTH.seconds(shape))
    assert model.seconds(prompt) == pytest.approx(before, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_is_observed_times_stay_monotone_and_never_negative(seed: int) -> None:
    rng, model = random.Random(seed), OnlineBatchTime()
    for _ in range(100):
        model.observe(served_shape(rng), rng.choice([1e-6, 1e-3, 1.0, 100.0]) * rng.random())
    shape = served_shape(rng)
    assert min(model.model.coefficients()) >= 0
    for field in BatchShape.__dataclass_fields__:
        larger = replace(shape, **{field: getattr(shape, field) + 100})
        assert 0 <= model.seconds(shape) <= model.seconds(larger)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_pass_that_says_nothing_is_passed_over(seconds: float) -> None:
    model = OnlineBatchTime()
    model.observe(BatchShape(8, 800), seconds)
    model.observe(BatchShape(), 1.0)
    assert model.num_observed == 0


def test_what_is_kept_is_bounded() -> None:
    bounds = OnlineFitSettings(window_per_kind=3, max_kinds=5, refit_every=1)
    model, rng = OnlineBatchTime(settings=bounds), random.Random(8)
    learn(model, TRUTH, rng, steps=300)
    assert model.num_kept <= 15


def test_the_same_passes_give_the_same_model() -> None:
    models = [OnlineBatchTime(), OnlineBatchTime()]
    for model in models:
        learn(model, TRUTH, random.Random(9), steps=200)
    assert models[0].model == models[1].model


@pytest.mark.parametrize(
    "changes", [{"refit_every": 0}, {"window_per_kind": 0}, {"prior_strength": 0.0}]
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|> 0"):
        replace(OnlineFitSettings(), **changes)  # type: ignore[arg-type]
