"""The model read backwards: the largest chunk within a limit, the smallest pass that saturates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_limits import max_prompt_tokens, target_forward_size

# Free up to 256 tokens, then 0.1 ms a token.
MODEL = BatchTime(
    fixed_s=0.02,
    bends=((256, 1e-4),),
    prompt_fixed_s=0.001,
    per_context_token_s=1e-7,
    per_prompt_pair_s=1e-9,
)


@given(
    st.integers(0, 64),
    st.integers(1, 4000),
    st.floats(0, 0.5),
    st.integers(0, 20_000),
    st.integers(0, 4096),
)
def test_the_chunk_keeps_the_limit_and_one_token_more_would_not(
    num_decode: int, context: int, limit_s: float, start: int, max_tokens: int
) -> None:
    shape = BatchShape(num_decode, num_decode * context)
    chunk = max_prompt_tokens(MODEL, shape, limit_s, max_tokens, start)
    assert 0 <= chunk <= max_tokens
    if chunk:
        assert MODEL.seconds(shape.with_chunk(start, chunk)) <= limit_s
    if chunk < max_tokens:
        assert MODEL.seconds(shape.with_chunk(start, chunk + 1)) > limit_s


def test_a_limit_below_the_decode_step_leaves_no_room() -> None:
    shape = BatchShape(32, 32_000)
    assert max_prompt_tokens(MODEL, shape, MODEL.seconds(shape), 2048) == 0


# PAPERS 3.4.1: with the fixed costs counted, half the limit above them is half the chunk.
def test_half_the_time_above_the_fixed_cost_is_half_the_tokens() -> None:
    linear = BatchTime(fixed_s=0.01, bends=((0, 1e-4),))
    wide = max_prompt_tokens(linear, BatchShape(), 0.01 + 0.1, 4096)
    tight = max_prompt_tokens(linear, BatchShape(), 0.01 + 0.05, 4096)
    assert abs(wide - 2 * tight) <= 1


def test_more_context_before_the_chunk_makes_it_shorter() -> None:
    early = max_prompt_tokens(MODEL, BatchShape(), 0.1, 4096, start=0)
    late = max_prompt_tokens(MODEL, BatchShape(), 0.1, 4096, start=100_000)
    assert 0 < late < early


def test_the_target_is_where_the_products_begin_to_saturate() -> None:
    # 21 ms for up to 256 tokens; the best rate, 1 token in 0.08 ms, is there.
    assert target_forward_size(MODEL, fraction=1.0) == 256
    assert target_forward_size(MODEL, fraction=0.5) == 128


def test_without_a_bend_the_target_follows_the_fixed_cost() -> None:
    # tokens / (t0 + tokens * t1) reaches 0.9 of its limit at 9 * t0 / t1.
    linear = BatchTime(fixed_s=0.01, bends=((0, 1e-4),))
    assert target_forward_size(linear, fraction=0.9, max_tokens=1_000_000) == pytest.approx(
        900, abs=16
    )


@given(st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_higher_share_never_needs_fewer_tokens(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert target_forward_size(MODEL, low) <= target_forward_size(MODEL, high)


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_share_that_means_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        target_forward_size(MODEL, fraction)


def test_of_passes_that_take_no_time_the_largest_counts_as_best() -> None:
    free = BatchTime(fixed_s=0.0, bends=((0, 0.0),), per_prompt_pair_s=1e-9)
    assert target_forward_size(free, fraction=0.5, max_tokens=1024) == 512
    bent = BatchTime(fixed_s=0.0, bends=((256, 1e-4),))
    assert target_forward_size(bent, fraction=1.0) == 256


def test_fewer_tokens_than_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        target_forward_size(MODEL, max_tokens=8)
