"""Guests in blocks of running answers, on the cores: right answers, no block lost, real guests."""

import random
from dataclasses import replace
from functools import partial
from statistics import fmean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decode_worker.core import DecodeCore
from decode_worker.lending import Lending
from scheduling.length_oracles import MaxTokens
from scheduling.policy import POLICIES as POLICY_BY_NAME
from scheduling.policy import Sharing
from scheduling.prediction import LengthPredictor
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome
from simulator.simulation import Scenario, Simulation
from simulator.slo import NO_SLO
from simulator.testing import (
    Ask,
    CheckedCluster,
    Random,
    ShortSighted,
    Swapping,
    check_answers,
    check_empty,
    new_cluster,
    start,
)
from simulator.traces.workload import TraceRequest, Workload

FLEETS = (("mixed-0",), ("mixed-0", "mixed-1"), ("prefill-0", "decode-0", "mixed-0"))
POLICIES = ("ecoserve", "cacheopt")
# Half of the answers are long: hosts and guests come from one queue.
asks = st.builds(
    Ask,
    prompt=st.lists(st.integers(0, 999), min_size=1, max_size=14).map(tuple),
    max_tokens=st.integers(1, 16) | st.integers(16, 60),
    num_choices=st.integers(1, 2),
    at_s=st.floats(0, 0.05),
    cancel_after_s=st.none() | st.none() | st.floats(0, 0.3),
    deadline_s=st.none() | st.none() | st.floats(0.001, 0.5),
    num_end_ids=st.sampled_from([0, 0, 30, 100]),
)
kinds = st.sampled_from(["exact", "short", "random", "learning"])


def predictor_of(kind: str, seed: int) -> LengthPredictor | None:
    """An upper bound that is exact where nothing ends an answer early; too little; anything."""
    if kind == "exact":
        return MaxTokens()
    if kind == "short":
        return ShortSighted()
    return Random(seed) if kind == "random" else None


def run(cluster: CheckedCluster, wanted: list[Ask]) -> None:
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start, cluster, number, ask))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


# PAPERS 1.4.1, 1.4.3, 2.4.2.
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=4, max_size=14),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(POLICIES),
    num_blocks=st.integers(19, 40),
    kind=kinds,
    num_swap_blocks=st.sampled_from([0, 30]),
    fleet=st.sampled_from(FLEETS),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    kind: str,
    num_swap_blocks: int,
    fleet: tuple[str, ...],
) -> None:
    cluster = new_cluster(
        seed,
        policy,
        num_blocks,
        short_sighted=False,
        swapping=Swapping(num_swap_blocks),
        worker_ids=fleet,
        predictor=predictor_of(kind, seed),
    )
    run(cluster, wanted)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=4, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(POLICIES),
    kind=kinds,
    fleet=st.sampled_from(FLEETS),
    kills=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 0.3)), min_size=1, max_size=4),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask],
    seed: int,
    policy: str,
    kind: str,
    fleet: tuple[str, ...],
    kills: list[tuple[int, float]],
) -> None:
    predictor = predictor_of(kind, seed)
    cluster = new_cluster(
        seed, policy, 24, short_sighted=False, worker_ids=fleet, predictor=predictor
    )

    def restart(worker_id: str) -> None:
        cluster.kill_worker(worker_id)
        cluster.start_worker(worker_id, worker_id.partition("-")[0], 24)

    for number, ask in enumerate(wanted):
        cluster.at(0.0, partial(start, cluster, number, ask))
    for number, at_s in kills:
        cluster.at(0.001 + at_s, partial(restart, fleet[number % len(fleet)]))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


def crowd(seed: int, num_end_ids: int = 0) -> list[Ask]:
    """A long answer now and then, and many short ones."""
    rng = random.Random(seed)
    return [
        Ask(
            prompt=tuple(rng.choices(range(1000), k=rng.randint(1, 8))),
            max_tokens=rng.choice([6, 8, 10, 12, 60]),
            num_choices=1,
            at_s=number * 0.002,
            cancel_after_s=None,
            deadline_s=None,
            num_end_ids=num_end_ids,
        )
        for number in range(40)
    ]


def crowded(policy: str, kind: str, num_end_ids: int, num_seeds: int = 6) -> list[Lending]:
    """What the only worker of each of some clusters lent, while it had too little for all."""
    done: list[Lending] = []
    for seed in range(num_seeds):
        predictor = predictor_of(kind, seed)
        cluster = new_cluster(
            seed, policy, 24, short_sighted=False, worker_ids=("mixed-0",), predictor=predictor
        )
        run(cluster, crowd(seed, num_end_ids))
        (worker,) = cluster.worker_by_id.values()
        assert isinstance(worker.core, DecodeCore)
        done.append(worker.core.lending)
    return done


# Without these two, the tests above might show nothing.
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["exact", "random", "learning"])
def test_guests_happen(policy: str, kind: str) -> None:
    lendings = crowded(policy, kind, num_end_ids=0 if kind == "exact" else 30)
    assert sum(each.num_begun for each in lendings) >= 12
    if kind == "exact":
        assert sum(each.num_replaced for each in lendings) == 0, "all end in time"


@pytest.mark.parametrize("policy", POLICIES)
def test_hosts_do_meet_guests_that_run_over(policy: str) -> None:
    lendings = crowded(policy, "random", num_end_ids=0, num_seeds=16)
    assert sum(each.num_replaced for each in lendings) > 0


# PAPERS 1.4.8, and 1.4.9: without pipelining fewer run at once.
def test_with_pipelining_more_of_what_is_allocated_is_written_and_answers_end_earlier() -> None:
    rng = random.Random(3)
    requests = tuple(
        TraceRequest(0.02 * number, rng.randint(8, 64), rng.choice([600, 30, 60, 120, 200]))
        for number in range(400)
    )
    hardware = load_hardware("a100")
    kv = hardware.kv.model_copy(update={"capacity_tokens": 8000})
    scene = Scenario(
        Workload("drawn", requests),
        hardware.model_copy(update={"kv": kv}),
        (NO_SLO,) * len(requests),
        max_tokens=1024,
    )
    knowing = replace(POLICY_BY_NAME["ecoserve"], predictor="oracle")
    written: list[float] = []
    jct_s: list[float] = []
    for sharing in (Sharing.NONE, Sharing.PIPELINE):
        ended: list[RequestOutcome] = []
        recorder = RunRecorder(on_outcome=ended.append)
        policy = replace(knowing, sharing=sharing)
        (role,) = Simulation(scene, policy, ClusterSpec(num_mixed=1), recorder).run().roles
        written.append(role.written_block_s / role.allocated_block_s)
        jct_s.append(fmean(outcome.jct_s for outcome in ended))
    assert written[1] > 1.1 * written[0]
    assert jct_s[1] < 0.95 * jct_s[0]
