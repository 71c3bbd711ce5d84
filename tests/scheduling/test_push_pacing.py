"""Pushes that bring the last block sooner are made, others wait for the next pass."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.push_pacing import (
    MAX_LATER,
    MAX_PASSES,
    MIN_CUT_TOKENS,
    PassAhead,
    PushPath,
    PushState,
    RestOfPrompt,
    is_push_due,
    passes_of,
    slowed_s,
    tokens_before_cut,
)

# Rounding of a few sums of times of up to some seconds.
EPSILON_S = 1e-6

times_s = st.floats(0, 0.5, allow_subnormal=False)
paths = st.builds(
    PushPath, times_s, st.floats(0, 0.02, allow_subnormal=False), st.floats(0, 1, width=16)
)
passes = st.builds(PassAhead, times_s, st.integers(0, 64))
prompts = st.lists(passes, min_size=1, max_size=12)


def all_arrived_s(
    path: PushPath, prompt: list[PassAhead], busy_s: float, mode: str
) -> tuple[float, int]:
    """When the last block of a prompt is there, and by how many pushes, if all is as predicted."""
    now, free_at_s, num_ready, num_pushes = 0.0, busy_s, 0, 0
    for index, one in enumerate(prompt):
        state = PushState(num_ready, max(0.0, free_at_s - now), tuple(prompt[index:]))
        if num_ready and (mode == "chunk" or (mode == "auto" and is_push_due(path, state))):
            free_at_s = max(now, free_at_s) + path.seconds(num_ready)
            num_ready, num_pushes = 0, num_pushes + 1
        now += slowed_s(one.seconds, free_at_s - now, path.pass_share)
        num_ready += one.num_blocks
    num_pushes += bool(num_ready)
    return max(now, free_at_s) + path.seconds(num_ready), num_pushes


@given(paths, prompts, times_s)
def test_the_last_block_is_never_later_than_by_either_fixed_way(
    path: PushPath, prompt: list[PassAhead], busy_s: float
) -> None:
    auto_s, num_pushes = all_arrived_s(path, prompt, busy_s, "auto")
    chunk_s, most_pushes = all_arrived_s(path, prompt, busy_s, "chunk")
    whole_s, _ = all_arrived_s(path, prompt, busy_s, "whole")
    assert auto_s <= min(chunk_s, whole_s) + EPSILON_S
    assert num_pushes <= most_pushes


millis = st.integers(0, 200)


@given(millis, millis, st.integers(0, 20), millis, millis, st.integers(0, 8))
def test_before_the_last_pass_a_push_with_a_lower_fixed_cost_is_due_if_one_with_a_higher_is(
    fixed: int, more: int, per_block: int, pass_ms: int, busy: int, share: int
) -> None:
    state = PushState(16, busy / 1e3, (PassAhead(pass_ms / 1e3, 16),))
    low, high = (PushPath(one / 1e3, per_block / 1e3, share / 8) for one in (fixed, fixed + more))
    assert is_push_due(low, state) or not is_push_due(high, state)


@given(millis, st.integers(0, 20), millis, st.integers(0, 8), st.integers(0, 8))
def test_before_the_last_pass_a_push_that_takes_less_from_it_is_due_if_one_that_takes_more_is(
    fixed: int, per_block: int, pass_ms: int, share: int, more: int
) -> None:
    state = PushState(16, 0.0, (PassAhead(pass_ms / 1e3, 16),))
    low, high = (PushPath(fixed / 1e3, per_block / 1e3, one / 16) for one in (share, share + more))
    assert is_push_due(low, state) or not is_push_due(high, state)


@given(st.floats(0, 0.5), st.floats(1e-4, 0.02), st.floats(0.01, 0.5), st.integers(1, 64))
def test_beside_the_last_pass_a_push_is_due_if_its_fixed_cost_fits_into_it(
    fixed_s: float, per_block_s: float, pass_s: float, num_ready: int
) -> None:
    """Nothing competes: then it hides what the path carries meanwhile, and adds one fixed cost."""
    assume(abs(fixed_s - pass_s) > EPSILON_S)
    state = PushState(num_ready, 0.0, (PassAhead(pass_s, 1),))
    assert is_push_due(PushPath(fixed_s, per_block_s), state) == (fixed_s < pass_s)


def test_a_push_that_takes_all_its_time_from_the_passes_waits() -> None:
    state = PushState(64, 0.0, (PassAhead(0.2, 64), PassAhead(0.2, 64)))
    assert not is_push_due(PushPath(1e-4, 1e-4, pass_share=1.0), state)
    assert not is_push_due(PushPath(0.0, 1e-4, pass_share=1.0), state)


def test_while_the_path_is_taken_for_longer_than_the_pass_nothing_is_added_to_its_queue() -> None:
    path = PushPath(1e-3, 1e-3)
    ahead = (PassAhead(0.1, 64), PassAhead(0.1, 64))
    assert not is_push_due(path, PushState(64, 0.15, ahead))
    assert is_push_due(path, PushState(64, 0.05, ahead))


def test_a_quick_path_takes_all_but_the_end_in_one_push_before_the_last_passes() -> None:
    path = PushPath(1e-4, 1e-5)
    prompt = [PassAhead(0.1, 64)] * 8
    auto_s, num_pushes = all_arrived_s(path, prompt, 0.0, "auto")
    assert num_pushes == 2
    assert auto_s == pytest.approx(0.8 + 1e-4 + 64e-5)
    chunk_s, most_pushes = all_arrived_s(path, prompt, 0.0, "chunk")
    assert chunk_s == pytest.approx(auto_s)
    assert most_pushes == 8


def test_a_path_that_is_slower_than_the_passes_is_never_idle() -> None:
    path = PushPath(1e-4, 4e-3)
    prompt = [PassAhead(0.1, 64)] * 8
    auto_s, num_pushes = all_arrived_s(path, prompt, 0.0, "auto")
    assert auto_s <= 0.1 + 8 * 64 * 4e-3 + 8 * 1e-4
    assert num_pushes < 8, "what queues up goes as one"


def test_nothing_ready_is_nothing_due() -> None:
    assert not is_push_due(PushPath(0.0, 0.0), PushState(0, 0.0, (PassAhead(1.0, 1),)))


# --- the passes of a prompt ---------------------------------------------------------------------

MODEL = BatchTime(fixed_s=0.01, bends=((0, 1e-4),), per_prompt_pair_s=1e-9)


@st.composite
def rests(draw: st.DrawFn) -> RestOfPrompt:
    block_size = draw(st.sampled_from([1, 16]))
    end = draw(st.integers(1, 20_000))
    start = draw(st.integers(0, (end - 1) // block_size)) * block_size
    num_blocks = -(-end // block_size)
    first = draw(st.integers(0, num_blocks))
    target = num_blocks - first
    ready = max(0, min(start // block_size - first, target))
    return RestOfPrompt(start, end, block_size, first, target, ready, 0.0)


@given(rests(), st.integers(1, 4096), st.integers(1, 64))
def test_passes_bring_every_block_once_and_are_few_however_long_the_prompt(
    rest: RestOfPrompt, num_per_pass: int, num_next: int
) -> None:
    num_next = min(num_next, rest.end - rest.start)
    ahead = passes_of(MODEL, rest, num_next, num_per_pass)
    assert len(ahead) <= MAX_PASSES + 2
    assert rest.num_ready_blocks + sum(one.num_blocks for one in ahead) == rest.num_target_blocks
    first = MODEL.seconds(BatchShape().with_chunk(rest.start, num_next))
    assert ahead[0].seconds == first
    start, seconds = rest.start + num_next, first
    while start < rest.end:
        size = min(num_per_pass, rest.end - start)
        seconds += MODEL.seconds(BatchShape().with_chunk(start, size))
        start += size
    assert sum(one.seconds for one in ahead) == pytest.approx(seconds, rel=0.05)


def whole_prompt(num_tokens: int) -> RestOfPrompt:
    return RestOfPrompt(0, num_tokens, 16, 0, -(-num_tokens // 16), 0, 0.0)


def test_a_pass_is_cut_where_the_path_is_slow_and_not_where_it_is_quick() -> None:
    rest = whole_prompt(8192)
    slow, quick = PushPath(1e-4, 1e-3), PushPath(1e-4, 1e-5)
    assert 0 < tokens_before_cut(slow, MODEL, rest) < 8192
    assert tokens_before_cut(quick, MODEL, rest) == 8192


def test_a_short_prompt_is_never_cut() -> None:
    rest = whole_prompt(2 * MIN_CUT_TOKENS - 1)
    assert tokens_before_cut(PushPath(0.0, 1.0), MODEL, rest) == rest.end


def test_a_prompt_is_not_cut_where_its_first_token_would_be_later_by_much() -> None:
    """Callers wait for that one with a goal of its own, which the worker does not know."""
    path, model = PushPath(1e-4, 2e-3), BatchTime(fixed_s=0.02, bends=((0, 1e-4),))
    for num_tokens in (1024, 2048, 4096, 8192):
        num_first = tokens_before_cut(path, model, whole_prompt(num_tokens))
        in_one_s = model.seconds(BatchShape().with_chunk(0, num_tokens))
        # What another pass costs, whatever it holds.
        is_little = model.fixed_s <= MAX_LATER * in_one_s
        assert (num_first < num_tokens) == is_little, num_tokens


@given(rests(), paths)
def test_a_cut_is_at_the_end_of_a_block_and_brings_the_end_forward_by_more_than_it_costs(
    rest: RestOfPrompt, path: PushPath
) -> None:
    num_tokens = rest.end - rest.start
    num_first = tokens_before_cut(path, MODEL, rest)
    assert 0 < num_first <= num_tokens
    if num_first == num_tokens:
        return
    assert (rest.start + num_first) % rest.block_size == 0
    assert min(num_first, num_tokens - num_first) >= MIN_CUT_TOKENS
    ready = PassAhead(0.0, rest.num_ready_blocks)
    ends_s = [
        min(
            all_arrived_s(path, [ready, *passes_of(MODEL, rest, first, num_tokens)], 0.0, mode)[0]
            for mode in ("chunk", "whole", "auto")
        )
        for first in (num_tokens, num_first)
    ]
    computed_s = [
        sum(one.seconds for one in passes_of(MODEL, rest, first, num_tokens))
        for first in (num_tokens, num_first)
    ]
    if path.pass_share == 0:
        assert ends_s[0] - ends_s[1] > computed_s[1] - computed_s[0] - EPSILON_S
