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
from simulator.testing import (
    Ask,
    CheckedCluster,
    Expecting,
    Random,
    ShortSighted,
    Swapping,
    new_cluster,
    run_and_check,
)
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
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
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


def crowd(seed: int) -> list[Ask]:
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
            num_end_ids=0,
        )
        for number in range(40)
    ]


def lending_of(cluster: CheckedCluster) -> Lending:
    """Of the only worker."""
    (worker,) = cluster.worker_by_id.values()
    assert isinstance(worker.core, DecodeCore)
    return worker.core.lending


# Without these four, the tests above might show nothing. Who lends and who borrows follows from
# sizes alone, so they hold for all timings. (An answer that may begin with less room than is
# predicted needs no host.)
@pytest.mark.parametrize("policy", ["ecoserve", "cacheopt+least_share=1.0"])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_where_lengths_are_known_a_crowd_has_guests_and_all_of_them_end_in_time(
    policy: str, seed: int
) -> None:
    cluster = new_cluster(
        seed, policy, 24, short_sighted=False, worker_ids=("mixed-0",), predictor=MaxTokens()
    )
    run_and_check(cluster, crowd(seed))
    lending = lending_of(cluster)
    assert lending.num_begun > 0
    assert lending.num_replaced == 0


# ecoserve: all but two blocks are for the host, and three are needed; cacheopt lends rather than
# gives, and a host that needs another block finds one.
a_host_and_a_guest = pytest.mark.parametrize(
    ("policy", "num_blocks"), [("ecoserve", 18), ("cacheopt", 30)]
)
few_timings = settings(deadline=None, max_examples=25)
HOST = Ask(tuple(range(4)), 60, 1, 0.0, None, None, 0)
# It may become as long as its host; what is predicted of it is another matter.
GUEST = Ask(tuple(range(7, 11)), 57, 1, 0.005, None, None, 0)


def host_and_guest(
    seed: int, policy: str, num_blocks: int, predicted: int, host: Ask = HOST, guest: Ask = GUEST
) -> CheckedCluster:
    predictor = Expecting({guest.max_tokens: predicted})
    worker_ids = ("mixed-0",)
    cluster = new_cluster(
        seed, policy, num_blocks, False, worker_ids=worker_ids, predictor=predictor
    )
    run_and_check(cluster, [host, guest])
    assert lending_of(cluster).num_begun == 1
    return cluster


@a_host_and_a_guest
@few_timings
@given(seed=st.integers(0, 2**32))
def test_a_guest_that_ends_as_predicted_is_gone_before_its_host_comes(
    policy: str, num_blocks: int, seed: int
) -> None:
    cluster = host_and_guest(seed, policy, num_blocks, 6, guest=replace(GUEST, max_tokens=6))
    assert lending_of(cluster).num_replaced == 0
    assert list(cluster.finished) == [("r1", 0), ("r0", 0)], "the guest did not wait for its end"


# PAPERS 1.4.3.
@a_host_and_a_guest
@few_timings
@given(seed=st.integers(0, 2**32))
def test_a_host_that_comes_to_a_guest_which_runs_over_gets_another_block(
    policy: str, num_blocks: int, seed: int
) -> None:
    cluster = host_and_guest(seed, policy, num_blocks, predicted=6)
    assert lending_of(cluster).num_replaced > 0


@a_host_and_a_guest
@few_timings
@given(seed=st.integers(0, 2**32), after_s=st.floats(0.0, 0.3))
def test_a_guest_ends_well_whenever_the_caller_of_its_host_leaves(
    policy: str, num_blocks: int, seed: int, after_s: float
) -> None:
    leaving = replace(HOST, cancel_after_s=0.1 + after_s)
    cluster = host_and_guest(seed, policy, num_blocks, predicted=6, host=leaving)
    assert ("r1", 0) in cluster.finished


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
    num_running: list[float] = []
    for sharing in (Sharing.NONE, Sharing.PIPELINE):
        policy = replace(knowing, sharing=sharing)
        record, outcomes = simulated(scene, policy, ClusterSpec(num_mixed=1))
        (role,) = record.roles
        written.append(role.written_block_s / role.allocated_block_s)
        jct_s.append(fmean(outcome.jct_s for outcome in outcomes.values()))
        num_running.append(role.mean_running)
    assert written[1] > 1.05 * written[0]
    assert jct_s[1] < 0.95 * jct_s[0]
    assert num_running[1] > 1.05 * num_running[0]
