"""Prompts alone while answers are ahead, the most first tokens in time, nobody for ever behind."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batching import IterationState, PromptWork
from scheduling.deadline_fill import DeadlineFill

# A pass takes 10 ms, and 0.1 ms for each token.
MODEL = BatchTime(fixed_s=0.01, bends=((0, 1e-4),))
RULE = DeadlineFill(MODEL, target_tokens=2048, min_prompt_tokens=16)


def state(
    *prompts: PromptWork,
    num_decode: int = 0,
    next_due_s: float = math.inf,
    tpot_s: float = math.inf,
    num_begun: int = 0,
    tbt_s: float = math.inf,
    last_decode_at_s: float = 0.0,
) -> IterationState:
    return IterationState(
        now=0.0,
        num_decode=num_decode,
        decode_context=100 * num_decode,
        next_token_due_at_s=next_due_s,
        tightest_tpot_s=tpot_s,
        num_steps_without_prompt=0,
        prompts=prompts,
        num_startable=len(prompts) - num_begun,
        num_begun=num_begun,
        last_decode_at_s=last_decode_at_s,
        newest_tokens_at_s=last_decode_at_s,
        tightest_tbt_s=tbt_s,
    )


def prompt(num_tokens: int, due_s: float, num_computed: int = 0) -> PromptWork:
    return PromptWork(num_tokens, num_computed, due_s)


def test_no_gap_is_longer_than_its_goal_while_first_tokens_are_in_time_all_the_same() -> None:
    choice = RULE.choose(state(prompt(2000, 30.0), num_decode=10, next_due_s=5.0, tpot_s=0.1))
    assert choice.has_decodes
    ((_, num_tokens),) = choice.chunks
    assert MODEL.seconds(BatchShape(10, 1000).with_chunk(0, num_tokens)) <= 0.1


def test_answers_pause_while_they_are_ahead_of_their_pace() -> None:
    choice = RULE.choose(state(prompt(500, 0.09), num_decode=10, next_due_s=0.3, tpot_s=0.1))
    assert (choice.has_decodes, choice.chunks) == (False, ((0, 500),))


def test_answers_that_are_behind_are_in_every_pass_and_it_keeps_their_goal() -> None:
    choice = RULE.choose(state(prompt(1900, 1.0), num_decode=10, next_due_s=-1.0, tpot_s=0.1))
    assert choice.has_decodes
    ((index, num_tokens),) = choice.chunks
    shape = BatchShape(10, 1000).with_chunk(0, num_tokens)
    assert index == 0
    assert MODEL.seconds(shape) <= 0.095 < MODEL.seconds(shape.with_chunk(num_tokens, 1))


def test_nobody_pauses_longer_than_an_answer_allows_each_of_its_gaps_to_be() -> None:
    ahead = state(prompt(500, 0.09), num_decode=10, next_due_s=5.0, tpot_s=0.05, tbt_s=0.05)
    choice = RULE.choose(ahead)
    assert choice.has_decodes
    ((_, num_tokens),) = choice.chunks
    shape = BatchShape(10, 1000).with_chunk(0, num_tokens)
    assert MODEL.seconds(shape) <= 0.95 * 0.05 < MODEL.seconds(shape.with_chunk(num_tokens, 1))


def test_a_pause_that_a_single_gap_has_time_for_is_made() -> None:
    # 60 ms for the prompts and 11 for the pass after it.
    loose = state(prompt(500, 0.09), num_decode=10, next_due_s=5.0, tpot_s=0.05, tbt_s=0.08)
    assert not RULE.choose(loose).has_decodes


@given(
    tokens=st.lists(st.integers(1, 4000), min_size=1, max_size=6),
    due_s=st.floats(-1.0, 30.0),
    next_due_s=st.floats(-1.0, 10.0),
    tbt_s=st.floats(0.02, 0.5),
    since_s=st.floats(0.0, 0.5),
)
def test_no_pass_ends_after_a_single_gap_is_over_but_for_the_least_of_prompts(
    tokens: list[int], due_s: float, next_due_s: float, tbt_s: float, since_s: float
) -> None:
    asked = state(
        *(prompt(n, due_s) for n in tokens),
        num_decode=10,
        next_due_s=next_due_s,
        tpot_s=min(tbt_s, 0.1),
        tbt_s=tbt_s,
        last_decode_at_s=-since_s,
    )
    choice = RULE.choose(asked)
    shape = BatchShape(10, 1000) if choice.has_decodes else BatchShape()
    for _, num_tokens in choice.chunks:
        shape = shape.with_chunk(0, num_tokens)
    takes_s = MODEL.seconds(shape)
    if not choice.has_decodes:
        takes_s += MODEL.seconds(BatchShape(10, 1000))  # the pass in which they get their token
    if choice.num_prompt_tokens > RULE.min_prompt_tokens:
        assert since_s + takes_s <= tbt_s


# The prompts take 0.060 s alone. Answers are 0.005 s from their token, and could make up for more.
def pressed(model: BatchTime, num_decode: int) -> bool:
    """Whether answers are left out of a pass though their token would come after it is due."""
    rule = DeadlineFill(model, target_tokens=2048, min_prompt_tokens=16)
    goal_s = 0.05 + model.seconds(BatchShape(num_decode, 100 * num_decode))
    chosen = rule.choose(
        state(prompt(500, 0.09), num_decode=num_decode, next_due_s=0.005, tpot_s=goal_s)
    )
    return not chosen.has_decodes


def test_answers_fall_behind_where_a_pass_of_their_own_costs_little_more() -> None:
    # Of 21 ms, 20 are for the answers themselves, in whichever pass they are.
    assert pressed(BatchTime(fixed_s=0.001, bends=((0, 1e-4),)), num_decode=200)


def test_answers_do_not_fall_behind_where_a_pass_of_their_own_reads_all_weights_once_more() -> None:
    # Of 11 ms, 10 are for the weights, which the prompts' pass reads anyway.
    assert not pressed(MODEL, num_decode=10)


def test_answers_meet_a_long_pass_for_the_first_token_that_it_brings_in_time() -> None:
    # 0.151 s with the answers: in passes of 0.1 s, its goal for a gap, it would be due long before.
    late, timely, other = prompt(4000, -1.0), prompt(1300, 0.2), prompt(1500, 60.0)
    waiting = state(late, timely, other, num_decode=10, next_due_s=0.01, tpot_s=0.1)
    choice = RULE.choose(waiting)
    assert choice.has_decodes
    # A share of what is late, and nothing that would lengthen it without ending in it.
    assert set(dict(choice.chunks)) == {0, 1}
    assert dict(choice.chunks)[1] == 1300
    assert 0 < dict(choice.chunks)[0] <= 90


def test_answers_do_not_meet_a_long_pass_that_their_next_tokens_could_not_make_up_for() -> None:
    waiting = state(prompt(1300, 0.2), num_decode=10, next_due_s=-0.1, tpot_s=0.1)
    choice = RULE.choose(waiting)
    assert choice.has_decodes
    ((_, num_tokens),) = choice.chunks
    assert MODEL.seconds(BatchShape(10, 1000).with_chunk(0, num_tokens)) <= 0.1


def test_nobody_pauses_for_longer_than_a_few_gaps() -> None:
    # 2048 tokens take 0.21 s; goals of 50 ms allow 0.2 s, however far ahead the answers are.
    choice = RULE.choose(state(prompt(3000, 9.0), num_decode=1, next_due_s=60.0, tpot_s=0.05))
    assert choice.has_decodes


def test_what_would_make_a_first_token_late_is_left_for_the_next_pass() -> None:
    # Together they take 0.21 s; the first is due after 0.15 s.
    choice = RULE.choose(state(prompt(1000, 0.15), prompt(1000, 0.5)))
    assert choice.chunks[0] == (0, 1000)
    shape = BatchShape()
    for index, num_tokens in choice.chunks:
        assert index in (0, 1)
        shape = shape.with_chunk(0, num_tokens)
    assert MODEL.seconds(shape) <= 0.15


def test_a_prompt_that_cannot_be_in_time_yields_to_those_that_can() -> None:
    choice = RULE.choose(state(prompt(4000, 0.1), prompt(300, 0.12), prompt(300, 0.12)))
    assert {index: n for index, n in choice.chunks if index} == {1: 300, 2: 300}


def test_what_is_late_has_its_share_of_each_pass_however_many_are_in_time() -> None:
    many = [prompt(2000, 60.0) for _ in range(5)]
    choice = RULE.choose(state(prompt(4000, -1.0), *many))
    assert dict(choice.chunks)[0] == 204
    assert sum(n for _, n in choice.chunks) == 2048


def test_what_is_late_has_its_share_of_a_short_pass_too() -> None:
    # 40 ms leave room for 280 tokens beside ten answers.
    choice = RULE.choose(
        state(prompt(4000, -1.0), prompt(2000, 60.0), num_decode=10, next_due_s=5.0, tpot_s=0.04)
    )
    late, timely = dict(choice.chunks)[0], dict(choice.chunks)[1]
    assert 0.05 < late / (late + timely) < 0.11


def test_what_is_late_gets_all_that_nobody_else_wants() -> None:
    choice = RULE.choose(state(prompt(4000, -1.0), prompt(300, 60.0)))
    assert dict(choice.chunks) == {0: 1748, 1: 300}


def test_late_prompts_move_on_when_nobody_else_waits() -> None:
    choice = RULE.choose(state(prompt(300, -5.0), num_decode=4, next_due_s=-1.0, tpot_s=0.001))
    assert choice.chunks == ((0, 16),)


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.floats(0.0, 1.0)), min_size=1, max_size=6),
)
def test_no_other_order_has_more_first_tokens_in_time(work: list[tuple[int, float]]) -> None:
    prompts = [prompt(num_tokens, due_s) for num_tokens, due_s in work]

    def num_timely(order: list[int]) -> int:
        at_s, count = 0.0, 0
        for index in order:
            at_s += MODEL.seconds(BatchShape().with_chunk(0, prompts[index].num_missing_tokens))
            count += at_s <= prompts[index].due_at_s
        return count

    best = max(num_timely(list(o)) for o in itertools.permutations(range(len(prompts))))
    assert num_timely([*itertools.chain(*RULE.order(state(*prompts)))]) == best
