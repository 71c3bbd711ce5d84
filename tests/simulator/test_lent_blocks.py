"""Guests in blocks of running answers, on the cores: right answers, no block lost, real guests."""

import random
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decode_worker.core import DecodeCore
from decode_worker.lending import Lending
from scheduling.length_oracles import MaxTokens
from scheduling.policies import POLICIES as POLICY_BY_NAME
from scheduling.policy import DeadlineThenOccupancy, Sharing
from scheduling.prediction import LengthPredictor
from simulator.asks_testing import asks, at_once, deaths, prompts
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.testing import Ask, Random, ShortSighted, Swapping, new_cluster, run_and_check
from simulator.traces.workload import TraceRequest

FLEETS = (("mixed-0",), ("mixed-0", "mixed-1"), ("prefill-0", "decode-0", "mixed-0"))
POLICIES = ("ecoserve", "cacheopt")
# Half of the answers are long: hosts and guests come from one queue.
long_asks = asks(
    prompt=prompts(max_size=14),
    max_tokens=st.integers(1, 16) | st.integers(16, 60),
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


# PAPERS 1.4.1, 1.4.3, 2.4.2.
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(long_asks, min_size=4, max_size=14),
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
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    # At the very start nobody is dead yet, so nothing is refused for want of a worker.
    wanted=st.lists(long_asks.map(at_once), min_size=4, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(POLICIES),
    kind=kinds,
    fleet=st.sampled_from(FLEETS),
    dying=deaths(st.integers(0, 2), within_s=0.3),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask],
    seed: int,
    policy: str,
    kind: str,
    fleet: tuple[str, ...],
    dying: list[tuple[int, float]],
) -> None:
    predictor = predictor_of(kind, seed)
    cluster = new_cluster(
        seed, policy, 24, short_sighted=False, worker_ids=fleet, predictor=predictor
    )
    cluster.restart_workers((fleet[number % len(fleet)], at_s) for number, at_s in dying)
    run_and_check(cluster, wanted)


def crowd(seed: int, num_end_ids: int = 0) -> list[Ask]:
    """Long answers that come first, as short ones are due before them, and now and then one."""
    rng = random.Random(seed)
    return [
        Ask(
            prompt=tuple(rng.choices(range(1000), k=rng.randint(1, 8))),
            max_tokens=60 if number < 4 else rng.choice([6, 8, 10, 12, 60]),
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
        run_and_check(cluster, crowd(seed, num_end_ids))
        (worker,) = cluster.worker_by_id.values()
        assert isinstance(worker.core, DecodeCore)
        done.append(worker.core.lending)
    return done


# Without these two, the tests above might show nothing.
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["exact", "random", "learning"])
def test_guests_happen(policy: str, kind: str) -> None:
    lendings = crowded(policy, kind, num_end_ids=0 if kind == "exact" else 30, num_seeds=18)
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
    scene = scene_of(requests, with_kv_tokens(load_hardware("a100"), 8000))
    # By the next token: without goals the whole answer's deadline would put short ones first.
    knowing = replace(
        POLICY_BY_NAME["ecoserve"],
        predictor="oracle",
        bound=None,
        ordering=DeadlineThenOccupancy(),
    )
    written: list[float] = []
    jct_s: list[float] = []
    for sharing in (Sharing.NONE, Sharing.PIPELINE):
        policy = replace(knowing, sharing=sharing)
        record, outcomes = simulated(scene, policy, ClusterSpec(num_mixed=1))
        (role,) = record.roles
        written.append(role.written_block_s / role.allocated_block_s)
        jct_s.append(fmean(outcome.jct_s for outcome in outcomes.values()))
    assert written[1] > 1.05 * written[0]
    assert jct_s[1] < 0.95 * jct_s[0]
