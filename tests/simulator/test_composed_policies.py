"""Choices of different policies compose: whatever is set beside what, every answer comes to an end.

One run of the cores with tokens that are compared, one of the simulator's own with all choices.
"""

import random

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from scheduling.policies import POLICIES
from scheduling.policy import Batching, Sharing
from scheduling.policy_settings import PolicyInvalid, joined, policy_of
from simulator.asks_testing import asks, prompts
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.metrics.request_outcome import Status
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.testing import Ask, Swapping, new_cluster, run_and_check
from simulator.traces.workload import TraceRequest

FLEETS = (("mixed-0",), ("mixed-0", "mixed-1"), ("prefill-0", "decode-0", "mixed-0"))
CLUSTERS = (ClusterSpec(num_mixed=2), ClusterSpec(num_prefill=1, num_decode=1, num_mixed=1))
# Of one run; ten times the most that any took.
MAX_EVENTS = 250_000
ROUTER_CHOICES = {
    "ordering": ("arrival", "deadline"),
    "allocation": ("exact", "blocks", "blocks:16"),
    "sharing": tuple(map(str, Sharing)),
    "admission": ("reserved", "peak", "peak:1.5"),
    "victims": ("last-arrived", "cheapest-to-recompute", "loosest-goal", "largest-slack"),
    "is_preempting_eagerly": ("yes", "no"),
    "is_growing_ahead": ("yes", "no"),
    "reserves_more_again": ("yes", "no"),
    "parked_yields": ("yes", "no"),
    "urgent_preempts": ("yes", "no"),
    "late_yields": ("yes", "no"),
    "is_grouping": ("yes", "no"),
    "is_decoupled": ("yes", "no"),
}
WORKER_CHOICES = {
    "batching": tuple(map(str, Batching)),
    "preemption": ("cheaper", "first", "swap", "recompute"),
    "is_queued_on_workers": ("yes", "no"),
    "growth_reserve": ("0", "0.01", "0.2"),
    "predictor": ("quantiles", "regression", "max-tokens", "oracle", "noisy-oracle:0.9"),
    "bound": ("none", "mean", "quantile", "padded", "hoeffding"),
}


@st.composite
def policies(draw: st.DrawFn, choices: dict[str, tuple[str, ...]]) -> str:
    """Some policy with up to six of the choices made otherwise."""
    names = draw(st.lists(st.sampled_from(sorted(choices)), unique=True, max_size=6))
    pairs = [f"{name}={draw(st.sampled_from(choices[name]))}" for name in names]
    text = joined(draw(st.sampled_from(sorted(POLICIES))), pairs)
    try:
        return policy_of(text).name
    except PolicyInvalid:  # said to be so, and why
        reject()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(
        asks(prompt=prompts(max_size=14), max_tokens=st.integers(1, 40), at_s=st.floats(0, 0.05)),
        min_size=2,
        max_size=10,
    ),
    seed=st.integers(0, 2**32),
    policy=policies(ROUTER_CHOICES),
    num_blocks=st.integers(15, 40),
    num_swap_blocks=st.sampled_from([0, 30]),
    fleet=st.sampled_from(FLEETS),
)
def test_tokens_are_the_same_whatever_is_composed(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    num_swap_blocks: int,
    fleet: tuple[str, ...],
) -> None:
    swapping = Swapping(num_swap_blocks)
    run_and_check(
        new_cluster(seed, policy, num_blocks, False, swapping=swapping, worker_ids=fleet), wanted
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    policy=policies(ROUTER_CHOICES | WORKER_CHOICES),
    seed=st.integers(0, 2**32),
    num_kv_tokens=st.sampled_from([2_000, 6_000]),
    swap_bytes=st.sampled_from([0, 2**30]),
    cluster=st.sampled_from(CLUSTERS),
)
# An answer that waits in place, beside others that had no room and nobody who made some.
@example("fastserve+is_decoupled=yes", 118_921, 2_000, 2**30, CLUSTERS[1])
def test_every_simulated_request_ends_whatever_is_composed(
    policy: str, seed: int, num_kv_tokens: int, swap_bytes: int, cluster: ClusterSpec
) -> None:
    rng = random.Random(seed)
    requests = [
        TraceRequest(0.05 * number, rng.randint(8, 600), rng.choice([5, 40, 300]))
        for number in range(25)
    ]
    hardware = with_kv_tokens(load_hardware("a100"), num_kv_tokens)
    scene = scene_of(requests, hardware, swap_bytes=swap_bytes)
    _, outcomes = simulated(scene, policy_of(policy), cluster, MAX_EVENTS)
    assert len(outcomes) == len(requests)
    assert {one.status for one in outcomes.values()} == {Status.FINISHED}


def test_what_is_known_not_to_end_is_refused() -> None:
    with pytest.raises(PolicyInvalid, match="take room from one another for ever"):
        policy_of("default+reserves_more_again=no")


def test_a_run_that_goes_on_for_too_long_is_told_with_those_who_have_not_ended() -> None:
    requests = [TraceRequest(1.0 * number, 8, 2) for number in range(100)]
    scene = scene_of(requests, load_hardware("a100"))
    words = r"default on mixed:2 is still busy after 200 events, .* of 100 requests, \[\d\d, "
    with pytest.raises(AssertionError, match=words):
        simulated(scene, policy_of("default"), CLUSTERS[0], max_events=200)
