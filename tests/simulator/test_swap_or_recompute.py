"""Sequences that make room: both ways back in one run, as measured costs and the policy have it."""

from dataclasses import replace

import pytest

from scheduling.batch_time_recovery import Preemption
from scheduling.policies import POLICIES
from scheduling.policy import Policy
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import CopyPart, Hardware, load_hardware
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.run_record import RunRecord
from simulator.simulation import Scenario, Simulation
from simulator.slo import NO_SLO
from simulator.testing import Swapping, asks_at_once, new_cluster, run_and_check
from simulator.traces.workload import TraceRequest, Workload

NUM_REQUESTS = 48


def crowded(gb_per_s: float) -> Hardware:
    """An A100 with room for few of the answers below, and such a way to host memory."""
    whole = load_hardware("a100")
    return whole.model_copy(
        update={
            "kv": whole.kv.model_copy(update={"capacity_tokens": 12_000}),
            "swap": CopyPart(latency_s=20e-6, gb_per_s=gb_per_s),
        }
    )


def run(policy: Policy, gb_per_s: float, cluster: ClusterSpec) -> RunRecord:
    """Long and short prompts, and answers longer than anybody expects."""
    requests = [
        TraceRequest(0.05 * number, 1500 if number % 2 else 60, 500)
        for number in range(NUM_REQUESTS)
    ]
    workload = Workload("crowd", tuple(requests))
    hardware = crowded(gb_per_s)
    scenario = Scenario(
        workload, hardware, (NO_SLO,) * NUM_REQUESTS, max_tokens=600, swap_bytes=64 * 2**30
    )
    record = Simulation(scenario, policy, cluster, RunRecorder()).run()
    assert record.requests.all.num_finished == NUM_REQUESTS
    assert record.requests.num_output_tokens == 500 * NUM_REQUESTS
    return record


MIXED = ClusterSpec(num_mixed=1)
APART = ClusterSpec(num_prefill=1, num_decode=1)
EAGER = replace(POLICIES["fcfs"], preemption=Preemption.CHEAPER)


# PAPERS 2.4.5, with what the cores measure themselves.
@pytest.mark.parametrize("cluster", [MIXED, APART], ids=["mixed", "apart"])
def test_a_slow_way_is_not_taken_and_a_fast_one_is(cluster: ClusterSpec) -> None:
    slow, fast = (run(EAGER, rate, cluster).requests for rate in (0.05, 1000.0))
    assert slow.num_preemptions > 0
    assert slow.num_swaps == 0
    # Beside a batch a few tokens cost nothing, less than any copy.
    assert fast.num_swaps > fast.num_preemptions / 2
    assert cluster is MIXED or fast.num_swaps == fast.num_preemptions


@pytest.mark.parametrize(
    ("cluster", "gb_per_s"), [(MIXED, 30.0), (APART, 10.0)], ids=["mixed", "apart"]
)
def test_both_ways_are_taken_in_one_run_where_neither_is_always_cheaper(
    cluster: ClusterSpec, gb_per_s: float
) -> None:
    tally = run(EAGER, gb_per_s, cluster).requests
    assert 0 < tally.num_swaps < tally.num_preemptions


def test_answers_are_right_though_some_were_kept_and_others_computed_again() -> None:
    cluster = new_cluster(
        7, "fcfs", 10, True, num_decode=1, swapping=Swapping(100, preemption=Preemption.CHEAPER)
    )
    run_and_check(cluster, asks_at_once(12))
    timings = [finished.timings for finished in cluster.finished.values()]
    num_swaps = sum(each.num_swaps for each in timings)
    assert 0 < num_swaps < sum(each.num_preemptions for each in timings)


@pytest.mark.parametrize(
    ("name", "is_swapping"),
    [("fcfs", False), ("sarathi", False), ("distserve", True)],
)
def test_baselines_do_as_they_were_published(name: str, is_swapping: bool) -> None:
    policy = POLICIES[name]
    tally = run(policy, 30.0, APART if policy.is_disaggregated else MIXED).requests
    assert tally.num_preemptions > 0
    assert tally.num_swaps == (tally.num_preemptions if is_swapping else 0)


def test_the_choice_is_a_setting_of_the_policy() -> None:
    for preemption, share in ((Preemption.RECOMPUTE, 0), (Preemption.FIRST, 1)):
        tally = run(replace(EAGER, preemption=preemption), 30.0, MIXED).requests
        assert tally.num_preemptions > 0
        assert tally.num_swaps == share * tally.num_preemptions


def test_a_run_says_how_far_predictions_of_lengths_and_passes_were_off() -> None:
    record = run(POLICIES["default"], 10.0, MIXED)
    assert record.length_calibration.num_answers == NUM_REQUESTS
    assert record.length_calibration.mean_absolute_error > 0
    error = record.pass_time_error_by_role["mixed"]
    assert error.num_passes > 0
    assert error.median < 0.05, "the hardware's model has the form of the workers' own"
    assert run(POLICIES["orca"], 10.0, MIXED).pass_time_error_by_role == {}
