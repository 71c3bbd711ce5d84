"""Whatever one choice of a policy is changed to, a crowded cluster does something else."""

import random
from dataclasses import fields, replace
from functools import cache

import pytest

from scheduling.admission import FuturePeak
from scheduling.batch_time_recovery import Preemption
from scheduling.dynamic_chunk import ChunkSettings, IterationGoal
from scheduling.policies import POLICIES
from scheduling.policy import ArrivalOrder, Batching, ExactAllocation, Policy, Sharing
from scheduling.victims import CheapestToRecompute
from simulator.cluster_spec import cluster_for
from simulator.hardware.description import load_hardware
from simulator.simulation import Scenario
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.slo import GapRule, RequestSlo
from simulator.traces.workload import TraceRequest

ONE, PAIR = "mixed:1", "prefill:1,decode:1"
# By field: a policy and workers under which it counts, and what else it could be; None: the other
# way round.
CHOICES: dict[str, tuple[str, str, object]] = {
    "ordering": ("default", ONE, ArrivalOrder()),
    "allocation": ("default", ONE, ExactAllocation()),
    "batching": ("default", ONE, Batching.PROMPTS_FIRST),
    "chunks": ("accelgen", ONE, ChunkSettings(goal=IterationGoal.NONE)),
    "predictor": ("default", ONE, "max-tokens"),
    "bound": ("ecoserve", ONE, "hoeffding"),
    "least_share": ("cacheopt", ONE, 1.0),
    "growth_reserve": ("default", ONE, 0.3),
    "is_growing_ahead": ("cacheopt", ONE, None),
    "sharing": ("ecoserve", ONE, Sharing.NONE),
    "admission": ("fcfs", ONE, FuturePeak()),
    "victims": ("cacheopt", ONE, CheapestToRecompute()),
    "is_preempting_eagerly": ("fcfs", ONE, None),
    "preemption": ("fcfs", ONE, Preemption.FIRST),
    "reserves_more_again": ("fcfs", ONE, None),
    "parked_yields": ("default", ONE, None),
    "urgent_preempts": ("default", ONE, None),
    "late_yields": ("default", ONE, None),
    "is_grouping": ("ecoserve", PAIR, None),
    "is_decoupled": ("ecoserve", ONE, None),
    "outgrown_waits_again": ("ecoserve", ONE, None),
    "is_queued_on_workers": ("default", ONE, None),
}
# What it is called, and which workers it was made for.
OUTSIDE = {"name", "is_disaggregated"}


@cache
def crowded() -> Scenario:
    """Too many requests for the KV memory and for their goals."""
    rng = random.Random(11)
    requests = [
        TraceRequest(0.03 * number, rng.randint(8, 900), rng.choice([rng.randint(1, 60), 400]))
        for number in range(120)
    ]
    goals = [
        RequestSlo(ttft_s=rng.choice([0.5, 4.0]), gaps=((GapRule.MEAN, rng.choice([0.04, 0.4])),))
        for _ in requests
    ]
    hardware = with_kv_tokens(load_hardware("a100"), 12_000)
    return scene_of(requests, hardware, slos=tuple(goals), swap_bytes=2**30)


@cache
def lives(policy: Policy, workers: str) -> list[tuple[float | None, float, int]]:
    """First token, end and preemptions of every request."""
    cluster = cluster_for(workers, is_disaggregated=False)
    _, outcomes = simulated(crowded(), policy, cluster)
    ordered = [outcomes[number] for number in sorted(outcomes)]
    return [(each.ttft_s, each.jct_s, each.num_preemptions) for each in ordered]


def test_every_choice_of_a_policy_is_tried_here() -> None:
    assert CHOICES.keys() | OUTSIDE == {field.name for field in fields(Policy)}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_policy_with_another_choice_gives_another_run(choice: str) -> None:
    name, workers, other = CHOICES[choice]
    policy = POLICIES[name]
    value = getattr(policy, choice)
    assert value != other
    other = not value if isinstance(value, bool) else other
    changed = replace(policy, **{choice: other})  # type: ignore[arg-type]
    assert lives(changed, workers) != lives(policy, workers)
