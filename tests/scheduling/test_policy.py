"""The order of both queues, and how much decode space a task is given."""

from dataclasses import replace
from itertools import permutations

import pytest

from scheduling.policy import (
    POLICIES,
    BlockAllocation,
    DeadlineThenOccupancy,
    ExactAllocation,
    WaitingTask,
    growth_reserve_blocks,
    policy_named,
)

TASK = WaitingTask(
    arrival_at_s=10.0,
    deadline_at_s=20.0,
    num_occupied_blocks=8,
    num_prompt_tokens=100,
    num_response_tokens=50,
)


def test_an_earlier_deadline_bucket_goes_first_whatever_else_differs() -> None:
    order = DeadlineThenOccupancy(deadline_bucket_s=1.0, kvc_bucket_blocks=4)
    urgent = replace(TASK, deadline_at_s=19.0, num_occupied_blocks=0, num_response_tokens=1)
    assert order.generation_key(urgent) < order.generation_key(TASK)
    assert order.prompt_key(urgent) < order.prompt_key(TASK)


def test_nearly_equal_deadlines_tie_and_the_larger_holder_goes_first() -> None:
    order = DeadlineThenOccupancy(deadline_bucket_s=1.0, kvc_bucket_blocks=4)
    holder = replace(TASK, deadline_at_s=20.9, num_occupied_blocks=12)
    assert order.generation_key(holder) < order.generation_key(TASK)
    assert order.prompt_key(holder) < order.prompt_key(TASK)


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
    assert policy.ordering == DeadlineThenOccupancy(9.0, 2)
    assert policy_named("fcfs", 9.0, 2) == POLICIES["fcfs"]
    with pytest.raises(KeyError):
        policy_named("nonesuch", 1.0, 1)


def test_the_growth_reserve_leaves_a_tiny_pool_usable() -> None:
    assert growth_reserve_blocks(8) == 0
    assert growth_reserve_blocks(1600) == 100
    assert growth_reserve_blocks(1600, 0.25) == 400
    assert growth_reserve_blocks(1600, 0.0) == 0
