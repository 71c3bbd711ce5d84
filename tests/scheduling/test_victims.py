"""Who makes room first, on tables of hand-made requests."""

import math
from itertools import permutations

import pytest

from scheduling.ids import TaskId
from scheduling.victims import (
    Candidate,
    CheapestToRecompute,
    LargestSlack,
    LastArrived,
    LoosestGoal,
    LowestQueue,
    VictimRule,
    in_order_of_preemption,
)


def candidate(
    name: str,
    arrival_at_s: float = 0.0,
    num_tokens: int = 100,
    num_blocks: int = 10,
    tpot_goal_s: float = math.inf,
    num_remaining_tokens: int = 0,
    queue: int = 0,
    slack_s: float = math.inf,
) -> Candidate:
    return Candidate(
        TaskId(name),
        arrival_at_s,
        num_tokens,
        num_blocks,
        tpot_goal_s,
        num_remaining_tokens,
        queue,
        slack_s,
    )


def assert_order(rule: VictimRule, *expected: Candidate) -> None:
    for each in permutations(expected):
        assert in_order_of_preemption(each, rule) == list(expected)


# PAPERS 2.4.4
def test_cacheopt_takes_the_loosest_goal_then_the_longest_to_go_then_the_smallest() -> None:
    assert_order(
        LoosestGoal(tpot_bucket_s=0.05, remaining_bucket_tokens=32),
        candidate("no-goal", num_blocks=90),
        # The bucket from 0.20 to 0.25 s; the goals tie in it.
        candidate("loose-long-small", tpot_goal_s=0.21, num_remaining_tokens=100, num_blocks=5),
        # The bucket from 96 to 128 tokens ties as well, so the smaller one went first.
        candidate("loose-long-large", tpot_goal_s=0.24, num_remaining_tokens=120, num_blocks=50),
        candidate("loose-short-small", tpot_goal_s=0.24, num_remaining_tokens=95, num_blocks=1),
        candidate("tight-long-small", tpot_goal_s=0.19, num_remaining_tokens=900, num_blocks=1),
        candidate("tightest", tpot_goal_s=0.04, num_remaining_tokens=900, num_blocks=1),
    )


def test_vllm_takes_who_came_last() -> None:
    assert_order(
        LastArrived(),
        candidate("last", arrival_at_s=3.0, num_tokens=900),
        candidate("second", arrival_at_s=2.0, num_tokens=1),
        candidate("first", arrival_at_s=1.0, num_tokens=100),
    )


def test_the_cheapest_is_the_shortest_and_of_equal_ones_the_first_by_name() -> None:
    assert_order(
        CheapestToRecompute(),
        candidate("z", num_tokens=3),
        candidate("a", num_tokens=10),
        candidate("b", num_tokens=10),
        candidate("c", num_tokens=11),
    )


def test_fastserve_takes_the_lowest_queue_and_in_it_the_last() -> None:
    assert_order(
        LowestQueue(),
        candidate("low-late", queue=3, arrival_at_s=2.0),
        candidate("low-early", queue=3, arrival_at_s=1.0),
        candidate("high", queue=0, arrival_at_s=9.0),
    )


def test_accelgen_takes_who_can_wait_longest() -> None:
    assert_order(
        LargestSlack(),
        candidate("no-goal", num_tokens=3),
        candidate("no-goal-and-longer", num_tokens=4),
        candidate("some", slack_s=2.0),
        candidate("late", slack_s=-1.0),
    )


def test_buckets_without_a_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width"):
        LoosestGoal(tpot_bucket_s=0.0)
    with pytest.raises(ValueError, match="width"):
        LoosestGoal(remaining_bucket_tokens=0)
