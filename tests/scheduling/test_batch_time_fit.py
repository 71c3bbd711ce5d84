"""Fitting: known coefficients come back, noise does not make time negative."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_fit import (
    MeasuredBatch,
    NormalEquations,
    fit_batch_time,
    fit_error,
    solve_non_negative,
)

BENDS = (0, 128, 512)
MODEL = BatchTime(
    fixed_s=0.012,
    bends=((0, 3e-6), (128, 2e-5), (512, 5e-5)),
    prompt_fixed_s=0.003,
    per_sequence_s=2e-5,
    per_context_token_s=9e-8,
    per_prompt_pair_s=2e-9,
    per_context_token_beside_prompt_s=5e-8,
    per_sequence_and_prompt_token_s=3e-9,
)


def random_shape(rng: random.Random) -> BatchShape:
    shape = BatchShape()
    kind = rng.choice(["decode", "prompt", "mixed"])
    if kind != "prompt":
        num_decode = rng.choice([1, 4, 16, 64, 200])
        shape = BatchShape(num_decode, num_decode * rng.randint(16, 4000))
    if kind != "decode":
        shape = shape.with_chunk(rng.choice([0, 500, 4000]), rng.randint(1, 2048))
    return shape


def rows_of(model: BatchTime, seed: int, num_rows: int, noise: float) -> list[MeasuredBatch]:
    rng = random.Random(seed)
    shapes = [random_shape(rng) for _ in range(num_rows)]
    return [MeasuredBatch(s, model.seconds(s) * rng.uniform(1 - noise, 1 + noise)) for s in shapes]


def test_known_coefficients_are_recovered() -> None:
    found = fit_batch_time(rows_of(MODEL, 1, 300, noise=0.0), BENDS)
    assert found.coefficients() == pytest.approx(MODEL.coefficients(), rel=1e-3)


def test_noise_moves_predictions_less_than_itself() -> None:
    found = fit_batch_time(rows_of(MODEL, 2, 600, noise=0.1), BENDS)
    error = fit_error(found, rows_of(MODEL, 3, 300, noise=0.0))
    assert error.num_rows == 300
    assert error.median < 0.02
    assert error.p90 < 0.04


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_whatever_was_measured_no_coefficient_is_negative(seed: int, num_rows: int) -> None:
    rng = random.Random(seed)
    rows = [MeasuredBatch(random_shape(rng), rng.uniform(1e-4, 10)) for _ in range(num_rows)]
    assert min(fit_batch_time(rows, BENDS).coefficients()) >= 0


def test_known_coefficients_are_left_as_they_are() -> None:
    rows = rows_of(MODEL, 4, 200, noise=0.0)
    found = fit_batch_time(rows, BENDS, fixed={0: 0.012, 5: 0.0})
    assert found.fixed_s == 0.012
    assert found.per_context_token_beside_prompt_s == 0
    assert found.per_context_token_s >= MODEL.per_context_token_s


def test_a_weight_of_zero_takes_a_row_out() -> None:
    rows = rows_of(MODEL, 5, 200, noise=0.0)
    wrong = [MeasuredBatch(row.shape, 10 * row.seconds, weight=0.0) for row in rows]
    found = fit_batch_time(rows + wrong, BENDS)
    assert found.coefficients() == pytest.approx(MODEL.coefficients(), rel=1e-3)


@given(st.integers(0, 10_000))
def test_no_step_from_the_solution_does_better(seed: int) -> None:
    rng = random.Random(seed)
    equations = NormalEquations(5)
    rows = [([rng.uniform(0, 2) for _ in range(5)], rng.uniform(-1, 3)) for _ in range(12)]
    for row, value in rows:
        equations.add(row, value)
    found = solve_non_negative(equations.gram, equations.target)
    assert min(found) >= 0
    for i, value in enumerate(found):
        line = sum(g * x for g, x in zip(equations.gram[i], found, strict=True))
        downhill = equations.target[i] - line
        # Nothing to gain upwards; downwards only where zero forbids it.
        assert downhill <= 1e-6
        assert downhill >= -1e-6 or value == 0


def test_equal_columns_have_a_solution() -> None:
    equations = NormalEquations(2)
    equations.add([1.0, 1.0], 4.0)
    assert sum(solve_non_negative(equations.gram, equations.target)) == pytest.approx(4.0)


def test_nothing_to_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fit_batch_time([], BENDS)
    with pytest.raises(ValueError, match="at least one"):
        fit_error(MODEL, [])


@pytest.mark.parametrize(("shape", "seconds"), [(BatchShape(), 1.0), (BatchShape(1, 10), 0.0)])
def test_a_pass_without_tokens_or_time_is_refused(shape: BatchShape, seconds: float) -> None:
    with pytest.raises(ValueError, match="tokens, time"):
        MeasuredBatch(shape, seconds)
