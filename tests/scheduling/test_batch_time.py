"""Times of passes: never negative, monotone, and the parts add up as they should."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import (
    BatchShape,
    BatchTime,
    SwapTimeModel,
    TransferTimeModel,
    chunk_attention,
    features,
    shape_of,
)
from scheduling.step import ScheduledChunk

counts = st.integers(0, 10_000)
shapes = st.builds(BatchShape, counts, st.integers(0, 10**6), counts, st.integers(0, 10**8))
coefficients = st.floats(0, 1, allow_nan=False)
models = st.builds(
    BatchTime,
    fixed_s=coefficients,
    bends=st.lists(coefficients, min_size=3, max_size=3).map(
        lambda slopes: tuple(zip((0, 64, 512), slopes, strict=True))
    ),
    prompt_fixed_s=coefficients,
    per_sequence_s=coefficients,
    per_context_token_s=coefficients,
    per_prompt_pair_s=coefficients,
    per_context_token_beside_prompt_s=coefficients,
    per_sequence_and_prompt_token_s=coefficients,
)
MODEL = BatchTime(
    fixed_s=0.01,
    bends=((0, 1e-6), (200, 1e-4)),
    prompt_fixed_s=0.002,
    per_sequence_s=1e-5,
    per_context_token_s=1e-7,
    per_prompt_pair_s=1e-9,
)


@given(
    models, shapes, st.sampled_from(sorted(BatchShape.__dataclass_fields__)), st.integers(1, 5000)
)
def test_more_of_anything_never_takes_less_time(
    model: BatchTime, shape: BatchShape, field: str, more: int
) -> None:
    larger = replace(shape, **{field: getattr(shape, field) + more})
    assert 0 <= model.seconds(shape) <= model.seconds(larger)


@given(models, shapes)
def test_the_time_is_the_sum_of_coefficients_times_features(
    model: BatchTime, shape: BatchShape
) -> None:
    if shape.num_tokens == 0:
        assert model.seconds(shape) == 0
        return
    if shape.num_prompt_tokens == 0:
        shape = replace(shape, prompt_attention=0)
    columns = features(shape, model.bend_starts)
    expected = sum(c * x for c, x in zip(model.coefficients(), columns, strict=True))
    assert model.seconds(shape) == pytest.approx(expected)


@given(models)
def test_coefficients_make_the_same_model_again(model: BatchTime) -> None:
    assert BatchTime.from_coefficients(model.coefficients(), model.bend_starts) == model


def test_weights_are_read_once_for_decode_tokens_and_a_chunk() -> None:
    decode = BatchShape(num_decode=16, decode_context=16_000)
    chunk = BatchShape().with_chunk(0, 128)
    both = decode.with_chunk(0, 128)
    assert MODEL.seconds(both) < MODEL.seconds(decode) + MODEL.seconds(chunk) - 0.009


def test_a_chunk_is_priced_by_its_place_in_the_prompt() -> None:
    whole = BatchShape().with_chunk(0, 1000)
    pieces = BatchShape().with_chunk(0, 400).with_chunk(400, 600)
    assert whole == pieces
    assert chunk_attention(9000, 100) == 100 * 9050


def test_a_plan_has_the_shape_that_was_built_by_hand() -> None:
    chunks = [
        ScheduledChunk(slot=0, start=99, num_tokens=1, samples=True),
        ScheduledChunk(slot=1, start=9, num_tokens=1, samples=True),
        ScheduledChunk(slot=2, start=512, num_tokens=256, samples=False),
    ]
    by_hand = BatchShape().with_decode(100).with_decode(10).with_chunk(512, 256)
    assert shape_of(chunks) == by_hand


def test_a_coefficient_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="coefficients"):
        BatchTime(fixed_s=0.01, bends=((0, -1e-6),))


@pytest.mark.parametrize("starts", [(64, 0), (0, 0), (-1, 5)])
def test_bends_that_do_not_ascend_are_refused(starts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        BatchTime(fixed_s=0.01, bends=tuple((start, 1e-6) for start in starts))


def test_a_copy_takes_its_latency_and_its_bytes() -> None:
    link = TransferTimeModel(latency_s=0.001, bytes_per_s=1e9)
    assert link.seconds(10**9) == pytest.approx(1.001)
    assert link.seconds(0) == 0
    swap = SwapTimeModel(out=link, back=TransferTimeModel(0.0, 2e9))
    assert swap.round_trip_seconds(10**9) == pytest.approx(1.501)


def test_a_link_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        TransferTimeModel(latency_s=0.0, bytes_per_s=0.0)


@pytest.mark.parametrize(("num_tokens", "bent_s"), [(198, 0), (199, 0), (200, 0), (201, 1e-4)])
def test_a_bend_counts_from_its_own_token_on(num_tokens: int, bent_s: float) -> None:
    shape = BatchShape(num_prompt_tokens=num_tokens)
    assert MODEL.seconds(shape) == pytest.approx(0.012 + num_tokens * 1e-6 + bent_s, abs=1e-12)
