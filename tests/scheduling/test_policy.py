"""The order of both queues, how much decode space a task is given, and what else a policy names."""

from dataclasses import replace
from itertools import permutations

import pytest

from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batching import BatchingRule
from scheduling.batching_rules import (
    FillToTarget,
    PromptsFirst,
    WaitingRatio,
    WholePromptsMixed,
)
from scheduling.deadline_fill import DeadlineFill
from scheduling.dynamic_chunk import DynamicChunk
from scheduling.feedback_queues import FeedbackQueues
from scheduling.modelled_filling import FillToKnee, FillWithinGoal
from scheduling.policies import POLICIES, policy_named
from scheduling.policy import (
    Batching,
    BlockAllocation,
    DeadlineThenOccupancy,
    ExactAllocation,
    Policy,
    WaitingTask,
    growth_reserve_blocks,
)
from scheduling.prediction import RequestFeatures, ResponseLength

TASK = WaitingTask(
    arrival_at_s=10.0,
    deadline_at_s=20.0,
    num_occupied_blocks=8,
    num_prompt_tokens=100,
    num_response_tokens=50,
)


# PAPERS 1.4.7, of both queues; tests/scheduling/test_length_groups.py has it of a whole queue.
def test_an_earlier_deadline_bucket_goes_first_whatever_else_differs() -> None:
    order = DeadlineThenOccupancy(deadline_bucket_s=1.0, kvc_bucket_blocks=4)
    urgent = replace(TASK, deadline_at_s=19.0, num_occupied_blocks=0, num_response_tokens=1)
    assert order.generation_key(urgent) < order.generation_key(TASK)
    assert order.prompt_key(urgent) < order.prompt_key(TASK)


# PAPERS 1.2m: EcoServe's deadline is that of the whole answer, predicted as it is.
def test_ecoserve_looks_at_when_the_whole_answer_is_due() -> None:
    order = POLICIES["ecoserve"].ordering
    soon_over = replace(TASK, deadline_at_s=29.0, answer_due_at_s=30.0, num_response_tokens=1)
    long_to_go = replace(TASK, deadline_at_s=11.0, answer_due_at_s=60.0)
    assert order.generation_key(soon_over) < order.generation_key(long_to_go)
    assert order.prompt_key(soon_over) < order.prompt_key(long_to_go)


# PAPERS 1.4.7
def test_nearly_equal_deadlines_tie_and_the_larger_holder_goes_first() -> None:
    order = DeadlineThenOccupancy(deadline_bucket_s=1.0, kvc_bucket_blocks=4)
    holder = replace(TASK, deadline_at_s=20.9, num_occupied_blocks=12)
    assert order.generation_key(holder) < order.generation_key(TASK)
    assert order.prompt_key(holder) < order.prompt_key(TASK)


# PAPERS 1.4.7
def test_equal_holders_go_by_length_the_longer_first() -> None:
    order = DeadlineThenOccupancy(deadline_bucket_s=1.0, kvc_bucket_blocks=4)
    longer_answer = replace(TASK, num_response_tokens=51, num_occupied_blocks=11)
    longer_prompt = replace(TASK, num_prompt_tokens=101, num_occupied_blocks=9)
    assert order.generation_key(longer_answer) < order.generation_key(TASK)
    assert order.prompt_key(longer_prompt) < order.prompt_key(TASK)


def test_fcfs_looks_at_arrival_only() -> None:
    order = POLICIES["fcfs"].ordering
    early = replace(TASK, arrival_at_s=9.0, deadline_at_s=99.0, num_occupied_blocks=0)
    for first, second in permutations([early, TASK]):
        assert (order.prompt_key(first) < order.prompt_key(second)) == (first is early)
        assert (order.generation_key(first) < order.generation_key(second)) == (first is early)


def test_exact_allocation_covers_prompt_and_prediction() -> None:
    assert ExactAllocation().num_decode_blocks(30, 20, block_size=16) == 4


def test_block_allocation_covers_the_next_token_only() -> None:
    assert BlockAllocation().num_decode_blocks(32, 500, block_size=16) == 3
    assert BlockAllocation().num_decode_blocks(31, 500, block_size=16) == 2


def test_bucket_widths_reach_the_ordering() -> None:
    policy = policy_named("ecoserve", deadline_bucket_s=9.0, kvc_bucket_blocks=2)
    assert policy.ordering == DeadlineThenOccupancy(9.0, 2, is_of_answer=True)
    assert policy_named("fcfs", 9.0, 2) == POLICIES["fcfs"]
    with pytest.raises(KeyError):
        policy_named("nonesuch", 1.0, 1)


def test_the_growth_reserve_leaves_a_tiny_pool_usable() -> None:
    assert growth_reserve_blocks(8) == 0
    assert growth_reserve_blocks(1600) == 100
    assert growth_reserve_blocks(1600, 0.25) == 400
    assert growth_reserve_blocks(1600, 0.0) == 0


RULES: dict[Batching, BatchingRule] = {
    Batching.FILL: FillToTarget(512),
    Batching.PROMPTS_FIRST: PromptsFirst(512, 8),
    Batching.WHOLE_MIXED: WholePromptsMixed(8, 512),
    Batching.WAITING_RATIO: WaitingRatio(512),
}
LEARNING_RULES: dict[Batching, type[BatchingRule]] = {
    Batching.BY_DEADLINE: DeadlineFill,
    Batching.FILL_WITHIN_GOAL: FillWithinGoal,
    Batching.FIT_TO_KNEE: FillToKnee,
    Batching.DYNAMIC: DynamicChunk,
    Batching.FEEDBACK: FeedbackQueues,
}


def test_each_batching_is_its_rule_within_the_workers_limits() -> None:
    assert RULES.keys() | LEARNING_RULES.keys() == set(Batching)
    for batching, rule in RULES.items():
        policy = replace(POLICIES["default"], batching=batching)
        assert policy.batching_rule(max_tokens=512, max_seqs=8) == rule


@pytest.mark.parametrize("batching", LEARNING_RULES)
def test_what_a_rule_learns_of_one_worker_is_no_other_workers(batching: Batching) -> None:
    policy = replace(POLICIES["default"], batching=batching)
    first, second = policy.batching_rule(512, 8), policy.batching_rule(512, 8)
    for rule in (first, second):
        assert type(rule) is LEARNING_RULES[batching]
        assert isinstance(
            rule, DeadlineFill | DynamicChunk | FeedbackQueues | FillToKnee | FillWithinGoal
        )
        assert isinstance(rule.model, OnlineBatchTime)
    assert first != second


def predicted(policy: Policy) -> ResponseLength:
    """By a policy's predictor that has seen answers of 10 and of 90 tokens."""
    predictor = policy.new_predictor()
    asked = RequestFeatures("t", "standard", num_prompt_tokens=20, max_tokens=500)
    for _ in range(100):
        for num_tokens in (10, 90):
            known = replace(asked, known_output_tokens=num_tokens)
            predictor.predict(known)
            predictor.observe(known, num_tokens)
    return predictor.predict(replace(asked, known_output_tokens=33))


def test_answers_are_predicted_as_the_policy_says() -> None:
    assert predicted(POLICIES["oracle"]).bound == 33
    assert predicted(POLICIES["orca"]).bound == 500
    assert predicted(POLICIES["default"]).bound < 500


def test_a_policys_rule_for_the_bound_is_kept() -> None:
    plain = predicted(replace(POLICIES["cacheopt"], bound=None))
    padded = predicted(replace(POLICIES["cacheopt"], bound="padded"))
    assert plain.mean == padded.mean
    assert plain.bound < 2 * plain.mean <= padded.bound


def test_two_predictors_of_a_policy_know_nothing_of_one_another() -> None:
    asked = RequestFeatures("t", "standard", num_prompt_tokens=20, max_tokens=500)
    taught, fresh = POLICIES["default"].new_predictor(), POLICIES["default"].new_predictor()
    for _ in range(50):
        taught.observe(asked, 10)
    assert taught.predict(asked).bound < fresh.predict(asked).bound == 500


def test_only_a_policy_that_knows_the_future_needs_to_be_told() -> None:
    assert [name for name, policy in POLICIES.items() if policy.needs_foresight] == ["oracle"]
