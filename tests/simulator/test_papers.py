"""What PAPERS says that the published mechanisms do, on whole workers whose passes take no noise.

Each test names its item. What came out otherwise is told in docs/decisions/papers-as-built.md.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from scheduling.batch_time_limits import target_forward_size
from scheduling.policies import POLICIES
from scheduling.policy import (
    ArrivalOrder,
    BlockAllocation,
    DeadlineThenOccupancy,
    ExactAllocation,
    Policy,
)
from simulator.__main__ import main
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.metrics.run_record import RunRecord
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.slo import GapRule, RequestSlo
from simulator.traces.workload import TraceRequest

A100 = load_hardware("a100")
# It knows how long answers will be, and gives them exactly that.
ECOSERVE = replace(POLICIES["ecoserve"], predictor="oracle", bound=None)
LENGTHS = (600, 30, 60, 120, 200)


def crowd(
    num_requests: int, gap_s: float, longest_prompt: int, lengths: Sequence[int] = LENGTHS
) -> list[TraceRequest]:
    rng = random.Random(3)
    least = max(1, longest_prompt // 9)
    return [
        TraceRequest(number * gap_s, rng.randint(least, longest_prompt), rng.choice(lengths))
        for number in range(num_requests)
    ]


def run(
    policy: Policy, requests: Sequence[TraceRequest], num_kv_tokens: int, **changes: Any
) -> RunRecord:
    """By one mixed worker."""
    scene = scene_of(requests, with_kv_tokens(A100, num_kv_tokens), **changes)
    record, outcomes = simulated(scene, policy, ClusterSpec(num_mixed=1))
    assert len(outcomes) == len(requests)
    return record


# PAPERS 1.4.4: nobody lacks room in mid-flight where predictions are upper bounds; blocks one by
# one fail on the same trace. All else is the same.
def test_exact_allocation_never_fails_and_block_allocation_does() -> None:
    requests = crowd(300, 0.02, 64)
    knowing = replace(POLICIES["sarathi"], predictor="oracle")
    exact = run(replace(knowing, allocation=ExactAllocation()), requests, 8000)
    blocks = run(replace(knowing, allocation=BlockAllocation()), requests, 8000)
    assert exact.requests.num_preemptions == 0
    assert blocks.requests.num_preemptions > 100
    # Nor does anybody wait for a block.
    assert exact.requests.tbt.quantiles([1.0])[0] < 0.1
    assert blocks.requests.tbt.quantiles([1.0])[0] > 1.0


# PAPERS 1.4.6: passes end at the target forward size while prompts wait.
def test_passes_are_filled_to_the_target_forward_size_while_prompts_wait() -> None:
    record = run(POLICIES["ecoserve"], crowd(400, 0.001, 900, lengths=(2, 3)), 400_000)
    sizes = record.roles[0].iteration_tokens
    target = target_forward_size(A100.batch_time_model())
    most, usual = sizes.quantiles([0.9, 0.5])
    # Whole prompts fill it as far as some fit; the worker finds the knee from its own passes.
    assert 0.6 * target <= usual <= most <= 1.3 * target


# PAPERS 1.4.6, the coupled queue: prompts starve behind the answers that hold the memory. And
# 1.4.9: where the answer's room is part of the prompt's, passes are no larger, fewer run at once.
def test_prompts_starve_where_they_wait_for_the_room_of_their_answers() -> None:
    requests = crowd(300, 0.02, 900)
    # Where short answers go first, prompts wait for less, and the difference is a few percent.
    by_next_token = replace(ECOSERVE, ordering=DeadlineThenOccupancy())
    apart = run(by_next_token, requests, 20_000)
    coupled = run(replace(by_next_token, is_decoupled=False), requests, 20_000)
    assert apart.requests.ttft.mean < 0.9 * coupled.requests.ttft.mean
    assert apart.roles[0].iteration_tokens.mean > coupled.roles[0].iteration_tokens.mean
    assert apart.roles[0].mean_running > coupled.roles[0].mean_running


# PAPERS 1.4.9: without the order by deadline fewer meet goals, where these are not all alike.
# What those hold who wait: tests/scheduling/test_ablation_directions.py.
def test_in_order_of_arrival_fewer_requests_meet_their_goals() -> None:
    rng = random.Random(5)
    requests = crowd(200, 0.2, 900)
    tight = RequestSlo(ttft_s=2.0, gaps=((GapRule.MEAN, 0.08),))
    loose = RequestSlo(ttft_s=30.0, gaps=((GapRule.MEAN, 0.4),))
    slos = tuple(rng.choice((tight, loose)) for _ in requests)
    ordered = run(ECOSERVE, requests, 20_000, slos=slos)
    by_arrival = run(replace(ECOSERVE, ordering=ArrivalOrder()), requests, 20_000, slos=slos)
    attained = [record.requests.all.num_attained for record in (ordered, by_arrival)]
    assert attained[1] < 0.95 * attained[0]


# PAPERS 2.4.3: while the reserve lasts nobody who outgrows its room waits; and room that is asked
# for ahead, of a reserve, means fewer preemptions than room that is asked for when there is none.
def test_a_reserve_spares_answers_that_outgrow_their_room_the_wait() -> None:
    # Predicted by the mean, so that many outgrow what they were given.
    proactive = replace(POLICIES["cacheopt"], bound="mean", growth_reserve=0.3)
    reactive = replace(proactive, growth_reserve=0.0, is_growing_ahead=False)
    requests = crowd(100, 0.1, 64)
    kept, not_kept = run(proactive, requests, 8000), run(reactive, requests, 8000)
    assert kept.requests.num_preemptions == 0
    assert kept.requests.tbt.quantiles([1.0])[0] < 0.06, "no gap is longer than two passes"
    assert not_kept.requests.num_preemptions > 10
    assert not_kept.requests.tbt.quantiles([1.0])[0] > 1.0
    # The share that the policy has: less than is outgrown, but there is less to preempt for.
    usual = run(replace(proactive, growth_reserve=0.01), requests, 8000)
    assert usual.requests.num_preemptions < not_kept.requests.num_preemptions


# PAPERS 3.4.1: measured passes keep the tightest goal within the estimator's error, and half the
# goal is a smaller pass.
@pytest.mark.parametrize(
    ("policy", "goal_s"), [("accelgen", 0.12), ("accelgen", 0.06), ("sarathi", 0.12)]
)
def test_measured_passes_keep_the_tightest_goal_within_the_estimators_error(
    policy: str, goal_s: float
) -> None:
    requests = crowd(200, 0.2, 3000)
    goal = RequestSlo(ttft_s=10.0, gaps=((GapRule.EACH, goal_s),))
    record = run(POLICIES[policy], requests, 60_000, slos=(goal,) * len(requests))
    error = record.pass_time_error_by_role["mixed"].p90
    assert error < 0.05
    long, longest = record.requests.tbt.quantiles([0.9, 0.99])
    assert 0.9 * goal_s <= long <= longest <= goal_s, "no shorter than it has to be"


# PAPERS 1.4.10, by the search of `tandem plan`: the least number of GPUs that serves, DistServe
# charged for KV that travels and for a replica of the model in each phase.
@pytest.mark.parametrize(("rps", "ecoserve", "distserve"), [(2, 1, 2), (8, 2, 3)])
def test_ecoserve_needs_fewer_gpus_than_distserve_for_equal_goodput(
    rps: int, ecoserve: int, distserve: int, capsys: pytest.CaptureFixture[str]
) -> None:
    load = f"--trace azure_2023_conv --hardware a100 --max-requests 120 --target-rps {rps}"
    wanted = "--policy ecoserve,distserve --slo ttft=1s,tpot=100ms --quiet"
    assert main(["plan", *load.split(), *wanted.split()]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    gpus = {row[0]: int(row[2]) for row in rows if row[0] in ("ecoserve", "distserve")}
    assert gpus == {"ecoserve": ecoserve, "distserve": distserve}
