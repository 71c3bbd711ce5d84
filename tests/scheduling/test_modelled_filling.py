"""Token budgets that come from a model of batch times: the knee, and the tightest goal for gaps."""

import math
import random
from dataclasses import replace

import pytest

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_limits import ForwardSize, target_forward_size
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batching import IterationState, PromptWork
from scheduling.modelled_filling import FillToKnee, FillWithinGoal
from simulator.hardware.description import load_hardware

A100, H200 = (load_hardware(name).batch_time_model() for name in ("a100", "h200"))
LONG = PromptWork(num_missing_tokens=50_000, num_computed_tokens=0, due_at_s=100.0)
RUNNING = IterationState(
    now=0.0,
    num_decode=20,
    decode_context=20_000,
    next_token_due_at_s=0.1,
    tightest_tpot_s=0.1,
    num_steps_without_prompt=0,
    prompts=[LONG],
    num_startable=1,
    num_begun=0,
)


def forward_size(rule: FillToKnee | FillWithinGoal, state: IterationState) -> int:
    return state.num_decode + rule.choose(state).num_prompt_tokens


def seconds(model: BatchTime, state: IterationState, num_prompt_tokens: int) -> float:
    start = state.prompts[0].num_computed_tokens
    shape = BatchShape(state.num_decode, state.decode_context)
    return model.seconds(shape.with_chunk(start, num_prompt_tokens))


def rate(model: BatchTime, num_tokens: int) -> float:
    """Tokens a second."""
    return num_tokens / model.seconds(BatchShape(num_prompt_tokens=num_tokens))


# PAPERS 1.2i: the knee of a machine, not the most that an iteration may hold.
def test_an_iteration_is_filled_to_the_knee_of_its_machine() -> None:
    assert forward_size(FillToKnee(A100, 8192), RUNNING) == target_forward_size(A100) == 848
    assert forward_size(FillToKnee(H200, 8192), RUNNING) == target_forward_size(H200) == 1024


def test_a_pass_that_is_held_up_at_the_start_does_not_end_the_worker() -> None:
    online = OnlineBatchTime()
    size = ForwardSize(online, 64)
    for num_tokens, took_s in ((40, 1e-4), (64, 1e-2)):
        online.observe(BatchShape().with_chunk(0, num_tokens), took_s)
    # All time goes to pairs of tokens, and none to the tokens that are counted.
    assert online.seconds(BatchShape(num_prompt_tokens=64)) == 0
    assert size.num_tokens == 64, "no size is known to be enough"


def test_the_knee_is_no_more_than_an_iteration_may_hold() -> None:
    assert forward_size(FillToKnee(A100, 512), RUNNING) == 512
    assert forward_size(FillToKnee(A100, 12), replace(RUNNING, num_decode=4)) == 12


@pytest.mark.parametrize("model", [A100, H200], ids=["a100", "h200"])
@pytest.mark.parametrize("num_small", [0, 64, 2000])
def test_the_knee_is_found_by_passes_that_are_filled_to_it(
    model: BatchTime, num_small: int
) -> None:
    online = OnlineBatchTime()
    size = ForwardSize(online, 8192)
    assert size.num_tokens == 8192, "nothing is known, so nothing is ruled out"
    for number in range(num_small):
        shape = BatchShape(16, 8000).with_chunk(0, number % 200)
        online.observe(shape, model.seconds(shape))
    # Prompts wait all the time: who took the knee for too small must see beyond it all the same.
    rng = random.Random(3)
    for _ in range(400):
        shape = BatchShape(rng.randint(1, 40), 8000)
        online.observe(shape, model.seconds(shape))
        while shape.num_tokens < size.num_tokens:
            chunk = min(size.num_tokens - shape.num_tokens, rng.randint(20, 2000))
            shape = shape.with_chunk(0, chunk)
        online.observe(shape, model.seconds(shape))
    rates = [rate(model, num_tokens) for num_tokens in range(16, 8193, 16)]
    assert 0.7 <= rate(model, size.num_tokens) / max(rates) <= 0.9, "0.85 by the true model"


@pytest.mark.parametrize("model", [A100, H200], ids=["a100", "h200"])
@pytest.mark.parametrize("goal_s", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("num_computed", [0, 30_000])
def test_a_pass_is_the_longest_that_keeps_the_tightest_goal(
    model: BatchTime, goal_s: float, num_computed: int
) -> None:
    begun = replace(LONG, num_computed_tokens=num_computed)
    state = replace(RUNNING, tightest_tpot_s=goal_s, prompts=[begun])
    num_tokens = FillWithinGoal(model, 8192, min_prompt_tokens=1).choose(state).num_prompt_tokens
    assert seconds(model, state, num_tokens) <= 0.95 * goal_s
    is_most = num_tokens + state.num_decode == 8192
    assert is_most or seconds(model, state, num_tokens + 1) > 0.95 * goal_s


@pytest.mark.parametrize(
    "state",
    [replace(RUNNING, num_decode=0, decode_context=0), replace(RUNNING, tightest_tpot_s=math.inf)],
    ids=["nobody runs", "nobody has a goal"],
)
def test_without_a_goal_a_pass_is_as_large_as_it_may_be(state: IterationState) -> None:
    assert forward_size(FillWithinGoal(A100, 2048), state) == 2048


def test_a_goal_that_no_pass_keeps_leaves_prompts_a_smallest_chunk() -> None:
    hopeless = replace(RUNNING, tightest_tpot_s=0.001)
    assert FillWithinGoal(A100, 2048).choose(hopeless).num_prompt_tokens == 128
    # No more than the iteration may hold, even so.
    assert forward_size(FillWithinGoal(A100, 100), hopeless) == 100


@pytest.mark.parametrize("rule", [FillToKnee, FillWithinGoal])
def test_limits_that_mean_nothing_are_refused(
    rule: type[FillToKnee] | type[FillWithinGoal],
) -> None:
    with pytest.raises(ValueError, match="target_tokens"):
        rule(A100, 0)
    with pytest.raises(ValueError, match="min_prompt_tokens"):
        FillWithinGoal(A100, 8, min_prompt_tokens=0)
