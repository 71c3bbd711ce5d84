"""Runs that are given up, what a load is made of, and what it keeps busy."""

import pytest

from runtime.clock import ManualClock
from scheduling.batch_time import BatchShape
from scheduling.policies import POLICIES
from simulator.cluster_spec import ClusterSpec
from simulator.demand import demand_of
from simulator.hardware.description import load_hardware
from simulator.load import Load, LoadSettings
from simulator.runs import Runner
from simulator.traces.workload import TraceRequest, Workload

HARDWARE = load_hardware("h200")
DEFAULT, ONE = POLICIES["default"], ClusterSpec(num_mixed=1)


def load_of(*requests: TraceRequest, slo: str = "none") -> Load:
    return Load.of(Workload("test", requests), HARDWARE, LoadSettings(slo=slo))


def many(num: int, slo: str, rate: float) -> Load:
    requests = (TraceRequest(number / rate, 500 + 7 * number, 30) for number in range(num))
    return load_of(*requests, slo=slo)


def test_a_run_is_given_up_once_too_many_have_missed_their_goals() -> None:
    runner = Runner(many(400, slo="ttft=1us", rate=10), ManualClock())
    trial = runner.trial(DEFAULT, ONE, 1.0, least_attainment=0.9)
    assert not trial.is_complete
    assert trial.attainment < 0.9
    assert trial.result.record.requests.all.num_requests < 400


@pytest.mark.parametrize("goal", ["ttft=15ms", "ttft=40ms", "ttft=200ms", "tpot=6ms"])
def test_what_is_said_of_a_run_that_was_given_up_is_an_upper_bound(goal: str) -> None:
    runner = Runner(many(150, slo=goal, rate=100), ManualClock())
    complete = runner.trial(DEFAULT, ONE, 1.0, least_attainment=0.0)
    assert complete.is_complete
    assert complete.attainment == complete.result.slo_attainment
    for least in (0.5, 0.9, 1.0):
        trial = runner.trial(DEFAULT, ONE, 1.0, least)
        assert trial.attainment >= complete.attainment
        assert (trial.attainment >= least) == (complete.attainment >= least)


def test_the_longest_answer_is_what_callers_allow() -> None:
    load = load_of(TraceRequest(0.0, 10, 3), TraceRequest(1.0, 10, 300))
    assert load.max_tokens == 512
    exact = load_of(TraceRequest(0.0, 10, 64))
    assert exact.max_tokens == 64


def test_demand_is_the_busy_time_of_full_passes_over_the_span() -> None:
    model, limits = HARDWARE.batch_time_model(), HARDWARE.limits
    budget = limits.max_num_batched_tokens
    load = load_of(TraceRequest(0.0, budget, 1), TraceRequest(100.0, budget, 1))
    pass_s = model.seconds(BatchShape().with_chunk(0, budget))
    assert demand_of(load, 1.0).prefill == pytest.approx(2 * pass_s / 100, rel=1e-6)
    assert demand_of(load, 10.0).prefill == pytest.approx(20 * pass_s / 100, rel=1e-6)


def test_demand_for_answers_knows_the_goal_per_token() -> None:
    requests = [TraceRequest(float(second), 100, 200) for second in range(100)]
    loose = demand_of(load_of(*requests, slo="tpot=1s"), 1.0).decode
    tight = demand_of(load_of(*requests, slo="tpot=5ms"), 1.0).decode
    assert 0 < loose < tight


def test_demand_counts_what_is_cached_once() -> None:
    def one(arrival_s: float) -> TraceRequest:
        return TraceRequest(arrival_s, 6500, 1, prefix_ids=(1,), prefix_block_tokens=6400)

    alone = demand_of(load_of(TraceRequest(0.0, 6500, 1), one(100.0)), 1.0).prefill
    shared = demand_of(load_of(one(0.0), one(100.0)), 1.0).prefill
    assert shared < 0.6 * alone
