"""Workers that only count tokens, many steps at a time: the same run as step by step."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduling.dynamic_chunk import ChunkSettings
from scheduling.policies import POLICIES
from scheduling.policy import Batching
from simulator.asks_testing import asks, deaths, prompts
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.metrics.request_outcome import RequestOutcome
from simulator.metrics.run_record import RunRecord
from simulator.simulation import Scenario
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.testing import Ask, Swapping, new_cluster, run_and_check
from simulator.traces.workload import TraceRequest

FLEETS = (
    ("mixed-0",),
    ("mixed-0", "mixed-1"),
    ("prefill-0", "decode-0", "decode-1"),
    ("prefill-0", "decode-0", "mixed-0"),
)
# Prompts that begin alike, and answers of several plans.
counted_asks = asks(
    prompt=prompts(num_token_ids=4),
    max_tokens=st.integers(1, 40),
    at_s=st.floats(0, 0.2),
    num_end_ids=st.sampled_from([0, 20, 100]),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(counted_asks, min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(sorted(POLICIES)),
    num_blocks=st.integers(16, 40),
    short_sighted=st.booleans(),
    num_swap_blocks=st.sampled_from([0, 40]),
    fleet=st.sampled_from(FLEETS),
    max_untold_tokens=st.sampled_from([2, 7, 1000]),
)
def test_no_counted_step_reads_kv_that_is_not_its_own(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    short_sighted: bool,
    num_swap_blocks: int,
    fleet: tuple[str, ...],
    max_untold_tokens: int,
) -> None:
    cluster = new_cluster(
        seed,
        policy,
        num_blocks,
        short_sighted,
        swapping=Swapping(num_swap_blocks),
        worker_ids=fleet,
        max_untold_tokens=max_untold_tokens,
    )
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(counted_asks, min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    dying=deaths(st.just("mixed-0")),
)
def test_a_killed_worker_costs_no_counted_token(
    wanted: list[Ask], seed: int, dying: list[tuple[str, float]]
) -> None:
    fleet = ("mixed-0", "mixed-1")
    cluster = new_cluster(
        seed, "default", 40, short_sighted=False, worker_ids=fleet, max_untold_tokens=50
    )
    cluster.restart_workers(dying)
    run_and_check(cluster, wanted)


# --- beside single steps ----------------------------------------------------------------------


def drawn_requests(num_requests: int, seed: int, rate_rps: float) -> list[TraceRequest]:
    rng = random.Random(seed)
    now, requests = 0.0, []
    for _ in range(num_requests):
        now += rng.expovariate(rate_rps)
        num_output = rng.choice([1, rng.randint(1, 40), rng.randint(40, 400)])
        requests.append(TraceRequest(now, rng.randint(10, 3000), num_output))
    return requests


# The size of a pass beyond which it gains nothing is learnt from passes, and what is learnt at an
# instant depends on how many steps were told together: here it is the limit.
FIXED = {
    "ecoserve": replace(POLICIES["ecoserve"], batching=Batching.FILL),
    "accelgen": replace(POLICIES["accelgen"], chunks=ChunkSettings()),
}


def outcomes(
    scene: Scenario, policy: str, cluster: ClusterSpec
) -> tuple[RunRecord, list[RequestOutcome]]:
    record, by_number = simulated(scene, FIXED.get(policy, POLICIES[policy]), cluster)
    return record, [by_number[number] for number in sorted(by_number)]


def both(
    scene: Scenario, policy: str, cluster: ClusterSpec
) -> tuple[tuple[RunRecord, list[RequestOutcome]], tuple[RunRecord, list[RequestOutcome]]]:
    single = outcomes(replace(scene, max_untold_tokens=1), policy, cluster)
    return single, outcomes(replace(scene, max_untold_tokens=1024), policy, cluster)


MIXED, SPLIT = ClusterSpec(num_mixed=2), ClusterSpec(num_prefill=1, num_decode=2)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("cluster", [MIXED, SPLIT], ids=["mixed", "split"])
@pytest.mark.parametrize(
    ("num_kv_tokens", "rate_rps"), [(1_000_000, 8.0), (10_000, 10.0)], ids=["calm", "crowded"]
)
def test_many_steps_at_a_time_end_as_single_steps_do(
    policy: str, cluster: ClusterSpec, num_kv_tokens: int, rate_rps: float
) -> None:
    hardware = with_kv_tokens(load_hardware("h100"), num_kv_tokens)
    scene = scene_of(drawn_requests(60, 5, rate_rps), hardware)
    (single_record, single), (record, counted) = both(scene, policy, cluster)
    figures: list[Callable[[RequestOutcome], float]] = [
        lambda outcome: outcome.ttft_s or 0.0,
        lambda outcome: outcome.jct_s,
        lambda outcome: outcome.gaps.mean if outcome.gaps else 0.0,
        lambda outcome: outcome.gaps.max if outcome.gaps else 0.0,
        lambda outcome: outcome.num_preemptions,
        lambda outcome: outcome.num_output_tokens,
    ]
    for figure in figures:
        wanted = [figure(outcome) for outcome in single]
        assert [figure(outcome) for outcome in counted] == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    for role, single_role in zip(record.roles, single_record.roles, strict=True):
        assert role.num_iterations == single_role.num_iterations
        assert role.num_decode_tokens == single_role.num_decode_tokens
        assert role.num_prompt_tokens == single_role.num_prompt_tokens
        assert role.busy_s == pytest.approx(single_role.busy_s)
        # Steps of one plan grow longer: written in their middle is not quite the mean.
        assert role.written_block_s == pytest.approx(single_role.written_block_s, rel=1e-4)
        # Blocks that come in the middle of a plan are seen one step later.
        assert role.allocated_block_s == pytest.approx(single_role.allocated_block_s, rel=1e-3)
