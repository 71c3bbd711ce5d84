"""Each baseline's batch, as PAPERS section 10 has it; EcoServe's target forward size."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batching import BatchingRule, IterationChoice, IterationState, PromptWork
from scheduling.batching_rules import (
    Filling,
    FillToTarget,
    PromptsFirst,
    WaitingRatio,
    WholePromptsMixed,
)


def state_of(
    *lengths: int, num_decode: int = 0, num_begun: int = 0, num_steps: int = 1
) -> IterationState:
    """Prompts of these lengths, all startable, beside that many running sequences."""
    tpot_s = 0.1 if num_decode else math.inf
    return IterationState(
        now=0.0,
        num_decode=num_decode,
        decode_context=100 * num_decode,
        next_token_due_at_s=tpot_s,
        tightest_tpot_s=tpot_s,
        num_steps_without_prompt=num_steps,
        prompts=[PromptWork(length, 0, math.inf) for length in lengths],
        num_startable=len(lengths) - num_begun,
        num_begun=num_begun,
    )


def chunks(rule: BatchingRule, state: IterationState) -> dict[int, int]:
    return dict(rule.choose(state).chunks)


# PAPERS 1.4.6
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    num_decode=st.integers(0, 120),
)
def test_the_forward_size_is_the_target_while_prompts_wait(
    lengths: list[int], num_decode: int
) -> None:
    state = state_of(*lengths, num_decode=num_decode)
    choice = FillToTarget(128).choose(state)
    assert choice.has_decodes
    assert num_decode + choice.num_prompt_tokens == min(128, num_decode + sum(lengths))


# PAPERS 1.4.6
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    num_decode=st.integers(0, 120),
)
def test_filled_by_fit_the_forward_size_misses_the_target_by_less_than_any_that_waits(
    lengths: list[int], num_decode: int
) -> None:
    choice = FillToTarget(128, Filling.FIT).choose(state_of(*lengths, num_decode=num_decode))
    taken = dict(choice.chunks)
    left = 128 - num_decode - choice.num_prompt_tokens
    assert all(length > left for index, length in enumerate(lengths) if index not in taken)


def test_the_token_budget_goes_to_decodes_then_to_begun_prompts_then_to_new_ones() -> None:
    rule = FillToTarget(100)
    state = state_of(50, 30, 30, num_decode=10, num_begun=1)
    assert rule.choose(state) == IterationChoice(True, ((0, 50), (1, 30), (2, 10)))
    assert chunks(rule, replace(state, num_startable=1)) == {0: 50, 1: 30}
    assert chunks(rule, replace(state, num_startable=0)) == {0: 50}


def test_more_running_sequences_than_the_target_leave_no_room_for_prompts() -> None:
    assert FillToTarget(8).choose(state_of(5, num_decode=9)) == IterationChoice(True)


def test_filled_with_whole_prompts_the_first_that_does_not_fit_ends_it() -> None:
    rule = FillToTarget(100, Filling.WHOLE)
    assert chunks(rule, state_of(60, 50, 10, num_decode=10)) == {0: 60}
    assert chunks(rule, state_of(95, 10, num_decode=10)) == {}, "it waits for sequences to end"
    assert chunks(rule, state_of(101, 10, num_decode=10)) == {0: 90}, "no target could hold it"
    assert chunks(rule, state_of(11, 10, num_begun=1)) == {0: 11, 1: 10}


def test_a_short_prompt_fills_what_a_long_one_leaves() -> None:
    rule = FillToTarget(100, Filling.FIT)
    assert chunks(rule, state_of(60, 50, 10, 35, 5)) == {0: 60, 3: 35, 4: 5}
    assert chunks(rule, state_of(60, 50, 40, 40)) == {0: 60, 2: 40}, "equal ones as they came"


def test_nobody_is_overtaken_for_ever_by_those_that_fit() -> None:
    rule = FillToTarget(100, Filling.FIT)
    assert chunks(rule, state_of(95, 10, num_decode=10)) == {0: 90}, "the first in line is cut"
    assert chunks(rule, state_of(5, 10, num_decode=10, num_begun=1)) == {0: 5, 1: 10}


def test_vllm_computes_either_prompts_or_decodes() -> None:
    rule = PromptsFirst(max_tokens=100, max_seqs=8)
    assert rule.choose(state_of(60, 40, 1, num_decode=4)) == IterationChoice(
        False, ((0, 60), (1, 40))
    )
    assert rule.choose(state_of(num_decode=4)) == IterationChoice(True)
    assert rule.choose(replace(state_of(60, num_decode=4), num_startable=0)).has_decodes


def test_vllm_takes_prompts_up_to_the_limit_of_sequences_and_in_order() -> None:
    rule = PromptsFirst(max_tokens=100, max_seqs=8)
    assert chunks(rule, state_of(10, 10, 10, num_decode=6)) == {0: 10, 1: 10}
    assert rule.choose(state_of(10, num_decode=8)) == IterationChoice(True)
    assert chunks(rule, state_of(10, 5, num_decode=8, num_begun=1)) == {0: 10}, "it is in already"
    assert chunks(rule, state_of(60, 50, 10)) == {0: 60}, "nothing overtakes the second"


def test_a_prompt_longer_than_the_limit_gets_through_in_pieces_of_its_own() -> None:
    rule = PromptsFirst(max_tokens=100, max_seqs=8)
    assert chunks(rule, state_of(30, 250)) == {0: 30}
    assert chunks(rule, state_of(250, 30)) == {0: 100}
    assert chunks(rule, state_of(150, 30, num_begun=1)) == {0: 100}
    assert chunks(rule, state_of(50, 30, 30, num_begun=1)) == {0: 50, 1: 30}


def test_orca_mixes_whole_prompts_with_all_decodes_up_to_its_batch() -> None:
    rule = WholePromptsMixed(max_seqs=8)
    choice = rule.choose(state_of(5000, 10, 10, num_decode=6))
    assert choice == IterationChoice(True, ((0, 5000), (1, 10)))
    assert rule.choose(state_of(10, num_decode=8)) == IterationChoice(True)


def test_orca_on_an_engine_with_a_limit_keeps_prompts_whole() -> None:
    rule = WholePromptsMixed(max_seqs=8, max_tokens=100)
    assert chunks(rule, state_of(50, 45, 40, num_decode=2)) == {0: 50, 1: 45}
    assert chunks(rule, state_of(50, 49, num_decode=2)) == {0: 50}
    assert chunks(rule, state_of(120, 1, num_decode=2)) == {0: 98}


def test_tgi_pauses_decodes_when_enough_prompts_wait() -> None:
    rule = WaitingRatio(max_prompt_tokens=100)
    prompts = [10] * 3
    assert rule.choose(state_of(*prompts, num_decode=14)) == IterationChoice(True), (
        "3 are fewer than 0.3 x 14, rounded down"
    )
    assert rule.choose(state_of(*prompts, num_decode=13)) == IterationChoice(
        False, ((0, 10), (1, 10), (2, 10))
    )


def test_tgi_counts_the_prompts_that_its_cap_lets_in() -> None:
    rule = WaitingRatio(max_prompt_tokens=100)
    assert rule.choose(state_of(60, 60, 60, num_decode=10)).has_decodes
    assert not rule.choose(state_of(60, 60, 60, num_decode=6)).has_decodes


def test_tgi_takes_any_prompt_in_after_20_decode_steps() -> None:
    rule = WaitingRatio(max_prompt_tokens=100)
    assert rule.choose(state_of(10, num_decode=50, num_steps=19)).has_decodes
    assert rule.choose(state_of(10, num_decode=50, num_steps=20)) == IterationChoice(
        False, ((0, 10),)
    )


def test_tgi_lets_everybody_have_a_token_between_two_batches_of_prompts() -> None:
    rule = WaitingRatio(max_prompt_tokens=100)
    assert rule.choose(state_of(10, 10, num_decode=1, num_steps=0)) == IterationChoice(True)
    assert not rule.choose(state_of(10, 10, num_steps=0)).has_decodes, "nobody runs"
    assert chunks(rule, state_of(150, num_decode=1, num_begun=1, num_steps=0)) == {0: 100}


def test_tgi_of_today_fills_every_step_to_its_cap() -> None:
    rule = WaitingRatio(max_prompt_tokens=100, is_chunking=True)
    assert rule.choose(state_of(500, num_decode=60, num_steps=0)) == IterationChoice(
        True, ((0, 40),)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: FillToTarget(0),
        lambda: PromptsFirst(0, 1),
        lambda: PromptsFirst(1, 0),
        lambda: WholePromptsMixed(0),
        lambda: WholePromptsMixed(1, 0),
        lambda: WaitingRatio(0),
        lambda: WaitingRatio(1, ratio=-0.1),
    ],
)
def test_a_limit_that_lets_nothing_through_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="must be at least"):
        make()
