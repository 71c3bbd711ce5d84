"""Iterations sized by the tightest goal, filled by slack: PAPERS section 3."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_limits import target_forward_size
from scheduling.batching import IterationChoice, IterationState, PromptWork
from scheduling.dynamic_chunk import ChunkSettings, DynamicChunk, IterationGoal

S_PF, T_PF = 768, 0.1
# S_pf tokens take T_pf, fewer their share of it.
PROPORTIONAL = BatchTime(fixed_s=0.0, bends=((0, T_PF / S_PF),))
PUBLISHED = DynamicChunk(PROPORTIONAL, S_PF, min_prompt_tokens=0)
BY_SLACK = replace(PUBLISHED, gamma_s=0.0)
MODEL = BatchTime(
    fixed_s=0.010,
    bends=((0, 1e-5), (256, 9e-5)),
    prompt_fixed_s=0.001,
    per_sequence_s=2e-5,
    per_context_token_s=1e-7,
    per_prompt_pair_s=1e-8,
)
MODELLED = replace(PUBLISHED, model=MODEL)
LONG = PromptWork(num_missing_tokens=50_000, num_computed_tokens=0, due_at_s=100.0)


def state_of(
    *prompts: PromptWork, num_decode: int = 10, tpot_s: float = T_PF, num_begun: int = 0
) -> IterationState:
    return IterationState(
        now=0.0,
        num_decode=num_decode,
        decode_context=500 * num_decode,
        next_token_due_at_s=tpot_s if num_decode else math.inf,
        tightest_tpot_s=tpot_s if num_decode else math.inf,
        num_steps_without_prompt=1,
        prompts=prompts,
        num_startable=len(prompts) - num_begun,
        num_begun=num_begun,
    )


def work(num_tokens: int, due_at_s: float = 100.0, num_needed_blocks: int = 0) -> PromptWork:
    return PromptWork(num_tokens, 0, due_at_s, num_needed_blocks)


def forward_size(state: IterationState, choice: IterationChoice) -> int:
    return state.num_decode + choice.num_prompt_tokens


def shape_of(state: IterationState, choice: IterationChoice) -> BatchShape:
    shape = BatchShape(state.num_decode, state.decode_context)
    for index, num_tokens in choice.chunks:
        shape = shape.with_chunk(state.prompts[index].num_computed_tokens, num_tokens)
    return shape


# PAPERS 3.4.1
def test_half_the_goal_is_half_the_iteration() -> None:
    sizes = []
    for tpot_s in (T_PF, T_PF / 2, T_PF / 4):
        state = state_of(LONG, tpot_s=tpot_s)
        sizes.append(forward_size(state, PUBLISHED.choose(state)))
    assert sizes == [S_PF, S_PF // 2, S_PF // 4]


# PAPERS 3.4.1
@given(
    lengths=st.lists(st.integers(1, 3000), max_size=8),
    num_decode=st.integers(1, 64),
    tpot_s=st.floats(0.02, 0.3),
    num_begun=st.integers(0, 1),
)
def test_the_predicted_time_of_an_iteration_keeps_the_goal(
    lengths: list[int], num_decode: int, tpot_s: float, num_begun: int
) -> None:
    prompts = [PromptWork(length, 16 * (i % 3), 10.0) for i, length in enumerate(lengths)]
    state = state_of(
        *prompts, num_decode=num_decode, tpot_s=tpot_s, num_begun=min(num_begun, len(prompts))
    )
    for goal in (IterationGoal.TPOT, IterationGoal.NEXT_TOKEN):
        choice = replace(MODELLED, goal=goal).choose(state)
        assert MODEL.seconds(shape_of(state, choice)) <= tpot_s * 1.000001


# PAPERS 3.4.2
@given(lengths=st.lists(st.integers(1, 700), max_size=6), num_decode=st.integers(0, 300))
def test_the_iteration_is_filled_exactly_when_a_long_prompt_waits(
    lengths: list[int], num_decode: int
) -> None:
    state = state_of(*map(work, lengths), LONG, num_decode=num_decode, tpot_s=T_PF / 2)
    size = S_PF // 2 if num_decode else S_PF
    assert forward_size(state, PUBLISHED.choose(state)) == size
    begun = replace(LONG, num_computed_tokens=4096)
    state = state_of(begun, *map(work, lengths), num_begun=1, num_decode=num_decode)
    assert forward_size(state, PUBLISHED.choose(state)) == S_PF


# PAPERS 3.4.2
def test_with_a_model_one_more_token_would_miss_the_goal() -> None:
    state = state_of(LONG, tpot_s=0.05)
    choice = MODELLED.choose(state)
    (_, num_tokens) = choice.chunks[0]
    one_more = replace(choice, chunks=((0, num_tokens + 1),))
    assert MODEL.seconds(shape_of(state, choice)) <= 0.05 < MODEL.seconds(shape_of(state, one_more))


# PAPERS 3.4.3
def test_while_a_long_prompt_is_in_progress_no_other_is_cut() -> None:
    begun = replace(LONG, num_computed_tokens=4096)
    state = state_of(begun, work(5000, due_at_s=50.0), work(100, due_at_s=60.0), num_begun=1)
    assert dict(BY_SLACK.choose(state).chunks) == {2: 100, 0: S_PF - 110}
    state = replace(state, prompts=state.prompts[1:], num_begun=0)
    assert dict(BY_SLACK.choose(state).chunks) == {0: S_PF - 10}, "nothing is in progress"


# PAPERS 3.4.2, 3.4.3
def test_the_iteration_that_ends_a_long_prompt_begins_the_next() -> None:
    begun = PromptWork(num_missing_tokens=100, num_computed_tokens=4096, due_at_s=100.0)
    assert PUBLISHED.choose(state_of(begun, LONG, num_begun=1)).chunks == (
        (0, 100),
        (1, S_PF - 110),
    )


# PAPERS 3.4.3
def test_what_a_cut_leaves_of_the_time_is_not_given_to_a_second_piece() -> None:
    # One more token behind 20,000 others takes longer than three at the beginning of a prompt.
    deep = PromptWork(num_missing_tokens=5000, num_computed_tokens=20_000, due_at_s=50.0)
    rule = replace(MODELLED, gamma_s=0.0)
    assert len(rule.choose(state_of(deep, LONG)).chunks) == 1


# PAPERS 3.4.3
def test_an_urgent_prompt_is_cut_beside_the_long_one_in_progress() -> None:
    begun = replace(LONG, num_computed_tokens=4096)
    # Three iterations of 758 tokens and 0.1 s; a fourth would be too late.
    urgent = work(2000, due_at_s=0.35)
    state = state_of(begun, urgent, num_begun=1)
    assert PUBLISHED.choose(state).chunks == ((1, S_PF - 10),)
    for not_urgent in (work(2000, due_at_s=0.45), work(2000, due_at_s=0.25)):
        state = state_of(begun, not_urgent, num_begun=1)
        assert PUBLISHED.choose(state).chunks == ((0, S_PF - 10),)


# PAPERS 3.4.3
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=10))
def test_at_most_one_prompt_is_ever_half_computed_where_nobody_is_urgent(
    lengths: list[int],
) -> None:
    waiting = [work(length, due_at_s=1000.0 + length) for length in lengths]
    begun: list[PromptWork] = []
    while begun or waiting:
        state = state_of(*begun, *waiting, num_begun=len(begun))
        tokens_by_index = dict(PUBLISHED.choose(state).chunks)
        assert tokens_by_index
        left = [
            (
                replace(
                    prompt,
                    num_missing_tokens=prompt.num_missing_tokens - num_tokens,
                    num_computed_tokens=prompt.num_computed_tokens + num_tokens,
                ),
                index < len(begun) or num_tokens > 0,
            )
            for index, prompt in enumerate(state.prompts)
            if (num_tokens := tokens_by_index.get(index, 0)) < prompt.num_missing_tokens
        ]
        begun = [prompt for prompt, is_begun in left if is_begun]
        waiting = [prompt for prompt, is_begun in left if not is_begun]
        assert len(begun) <= 1


# PAPERS 3.4.5
def test_loose_goals_alone_reach_the_saturating_size() -> None:
    for tpot_s, size in ((10 * T_PF, S_PF), (T_PF, S_PF), (T_PF / 4, S_PF // 4)):
        state = state_of(LONG, tpot_s=tpot_s)
        assert forward_size(state, PUBLISHED.choose(state)) == size
    state = state_of(LONG, num_decode=0)
    assert forward_size(state, PUBLISHED.choose(state)) == S_PF


# PAPERS 3.4.5
def test_a_tight_prompt_shrinks_the_iteration_that_brings_its_first_token_only() -> None:
    tight, loose = work(192, due_at_s=T_PF / 2), work(2000, due_at_s=50.0)
    both = BY_SLACK.choose(state_of(tight, loose, num_decode=0))
    assert dict(both.chunks) == {0: 192, 1: S_PF // 2 - 192}
    late = BY_SLACK.choose(state_of(replace(tight, due_at_s=0.001), loose, num_decode=0))
    assert dict(late.chunks) == {0: 192, 1: S_PF - 192}, "what is late anyway delays nobody"
    alone = BY_SLACK.choose(state_of(loose, num_decode=0))
    assert dict(alone.chunks) == {0: S_PF}


def test_the_least_slack_goes_first_counted_in_iterations_still_to_come() -> None:
    # 10,000 tokens are 14 iterations of 0.1 s, so it has less slack though it is due later.
    state = state_of(work(300, due_at_s=3.0), work(10_000, due_at_s=4.0))
    assert BY_SLACK.choose(state).chunks == ((1, S_PF - 10),)
    state = state_of(work(300, due_at_s=3.0), work(10_000, due_at_s=5.0))
    assert BY_SLACK.choose(state).chunks == ((0, 300), (1, S_PF - 310))


def test_urgent_prompts_go_before_those_that_are_late_already() -> None:
    state = state_of(work(500, due_at_s=-1.0), work(500, due_at_s=0.15), num_decode=0)
    assert BY_SLACK.choose(state).chunks == ((1, 500), (0, 268))


def test_where_the_goal_is_missed_slack_counts_what_an_iteration_takes_at_least() -> None:
    rule = replace(MODELLED, goal=IterationGoal.NEXT_TOKEN, gamma_s=0.0, min_prompt_tokens=16)
    late, in_time_if_now = work(16, due_at_s=0.0005), work(16, due_at_s=0.02)
    state = replace(state_of(late, in_time_if_now), next_token_due_at_s=-1.0)
    assert rule.choose(state).chunks == ((1, 16),)


# PAPERS 3.4.4
def test_of_prompts_with_similar_slack_those_that_fill_both_resources_go_first() -> None:
    state = replace(
        state_of(
            work(100, 50.0, 45),
            work(700, 50.1, 60),
            work(60, 50.2, 35),
            work(60, 90.0, 5),
            num_decode=0,
        ),
        num_free_blocks=100,
        num_blocks=100,
    )
    rule = replace(PUBLISHED, gamma_s=0.75)
    assert rule.choose(state).chunks == ((1, 700), (2, 60), (3, 8))
    far = replace(state, prompts=[replace(state.prompts[0], due_at_s=40.0), *state.prompts[1:]])
    assert rule.choose(far).chunks[0] == (0, 100), "far less slack than the others"


def test_blocks_that_are_not_there_are_not_given_out() -> None:
    state = replace(
        state_of(work(10, num_needed_blocks=9), work(10, num_needed_blocks=8)),
        num_free_blocks=8,
        num_blocks=100,
    )
    assert PUBLISHED.choose(state).chunks == ((1, 10),)
    assert len(PUBLISHED.choose(replace(state, num_blocks=0)).chunks) == 2, "nobody counts them"


def test_the_time_to_the_next_token_can_be_the_goal() -> None:
    rule = replace(PUBLISHED, goal=IterationGoal.NEXT_TOKEN)
    state = replace(state_of(LONG), now=0.0, next_token_due_at_s=T_PF / 4)
    assert forward_size(state, rule.choose(state)) == S_PF // 4
    assert forward_size(state, PUBLISHED.choose(state)) == S_PF


@pytest.mark.parametrize("rule", [PUBLISHED, MODELLED])
def test_prompts_get_a_little_where_no_iteration_could_keep_the_goal(rule: DynamicChunk) -> None:
    state = state_of(LONG, tpot_s=0.0001)
    assert rule.choose(state) == IterationChoice(True)
    assert replace(rule, min_prompt_tokens=16).choose(state).chunks == ((0, 16),)
    late = replace(state_of(LONG), next_token_due_at_s=-1.0)
    late_rule = replace(rule, goal=IterationGoal.NEXT_TOKEN, min_prompt_tokens=16)
    assert late_rule.choose(late).chunks == ((0, 16),)
    # Sequences that run but have no room for their next token.
    starved = replace(state_of(LONG, num_decode=0), tightest_tpot_s=1e-9)
    assert rule.choose(starved).chunks == ((0, 1),), "nobody else makes progress"


def test_without_a_goal_every_iteration_is_the_largest() -> None:
    fixed = replace(PUBLISHED, goal=IterationGoal.NONE)
    for tpot_s in (T_PF, T_PF / 4):
        state = state_of(LONG, work(50, due_at_s=0.01), tpot_s=tpot_s)
        assert forward_size(state, fixed.choose(state)) == S_PF


def test_without_slack_prompts_go_as_the_router_sent_them() -> None:
    plain = replace(BY_SLACK, is_by_slack=False)
    state = state_of(work(100, due_at_s=50.0), work(100, due_at_s=0.15), work(100, due_at_s=9.0))
    assert next(index for index, _ in plain.choose(state).chunks) == 0
    assert next(index for index, _ in BY_SLACK.choose(state).chunks) == 1


def test_where_it_may_cut_several_a_second_long_prompt_is_begun() -> None:
    several = replace(BY_SLACK, is_cutting_one=False)
    begun = PromptWork(100, 200, due_at_s=60.0)
    state = state_of(begun, replace(LONG, due_at_s=90.0), replace(LONG, due_at_s=9.0), num_begun=1)
    # The tightest goes first, though one is half computed already.
    assert [index for index, _ in several.choose(state).chunks] == [2]
    assert next(index for index, _ in BY_SLACK.choose(state).chunks) == 0


def test_settings_of_a_policy_become_the_rule_of_a_worker() -> None:
    assert ChunkSettings().rule(MODEL, S_PF) == replace(MODELLED, min_prompt_tokens=16, margin=0.95)
    small = ChunkSettings(goal=IterationGoal.NONE, max_tokens=512).rule(MODEL, S_PF)
    assert (small.saturating_tokens, small.goal) == (512, IterationGoal.NONE)
    assert ChunkSettings(max_tokens=5000).rule(MODEL, S_PF).saturating_tokens == S_PF


# PAPERS 3.2a: S_pf is profiled; a worker's own model is the profile.
def test_the_saturating_size_is_the_knee_of_the_workers_model() -> None:
    rule = ChunkSettings(saturation=0.85).rule(MODEL, 8192)
    knee = target_forward_size(MODEL, 0.85)
    assert rule.saturating_tokens == knee < 8192
    loose = state_of(replace(LONG, num_missing_tokens=50_000), num_decode=10, tpot_s=60.0)
    assert forward_size(loose, rule.choose(loose)) == knee


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        replace(PUBLISHED, max_tokens=0)
    with pytest.raises(ValueError, match="gamma_s"):
        replace(PUBLISHED, gamma_s=-1.0)
