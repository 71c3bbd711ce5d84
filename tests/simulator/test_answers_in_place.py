"""Prompts and answers with room apart, on the cores: right answers, no block lost, nobody stuck."""

import random
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.state import RouterSettings
from router.timeline import Entry
from runtime.clock import ManualClock
from scheduling.length_oracles import MaxTokens
from scheduling.lifecycle import Change
from scheduling.policies import POLICIES
from scheduling.policy import Policy, Sharing
from scheduling.prediction import LengthPredictor
from simulator.asks_testing import asks, at_once, deaths, prompts
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.testing import Ask, CheckedCluster, Random, ShortSighted, run_and_check
from simulator.traces.workload import TraceRequest

FLEETS = (("mixed-0",), ("mixed-0", "mixed-1"), ("prefill-0", "decode-0", "mixed-0"))
long_asks = asks(
    prompt=prompts(max_size=14),
    max_tokens=st.integers(1, 16) | st.integers(16, 60),
    at_s=st.floats(0, 0.05),
    cancel_after_s=st.none() | st.none() | st.floats(0, 0.3),
    deadline_s=st.none() | st.none() | st.floats(0.001, 0.5),
    num_end_ids=st.sampled_from([0, 0, 30, 100]),
)


def predictor_of(kind: str, seed: int) -> LengthPredictor:
    """An upper bound that is exact where nothing ends an answer early; too little; anything."""
    if kind == "exact":
        return MaxTokens()
    return ShortSighted() if kind == "short" else Random(seed)


def new_cluster(
    seed: int,
    predictor: LengthPredictor,
    fleet: tuple[str, ...],
    num_blocks: int = 24,
    reserve: float = 0.25,
    sharing: Sharing = Sharing.NONE,
    max_untold_tokens: int = 1,
    *,
    waits_again: bool = True,
) -> CheckedCluster:
    """Blocks of 4 tokens; that share of them is for prompts and for growth."""
    policy = replace(POLICIES["ecoserve"], sharing=sharing, outgrown_waits_again=waits_again)
    limits = RouterSettings(
        max_backlog_tokens=24, max_retries_per_task=100, length_quantum_tokens=4
    )
    cluster = CheckedCluster(
        RouterCore(policy, predictor, limits),
        MemoryLedger(ManualClock()),
        random.Random(seed),
        growth_reserve=reserve,
        policy=policy,
        max_untold_tokens=max_untold_tokens,
    )
    for worker_id in fleet:
        cluster.start_worker(worker_id, worker_id.partition("-")[0], num_blocks)
    return cluster


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(long_asks, min_size=4, max_size=16),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["exact", "short", "random"]),
    num_blocks=st.integers(19, 40),
    reserve=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    sharing=st.sampled_from([Sharing.NONE, Sharing.PIPELINE]),
    fleet=st.sampled_from(FLEETS),
    max_untold_tokens=st.sampled_from([1, 64]),
    waits_again=st.booleans(),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask],
    seed: int,
    kind: str,
    num_blocks: int,
    reserve: float,
    sharing: Sharing,
    fleet: tuple[str, ...],
    max_untold_tokens: int,
    waits_again: bool,
) -> None:
    cluster = new_cluster(
        seed,
        predictor_of(kind, seed),
        fleet,
        num_blocks,
        reserve,
        sharing,
        max_untold_tokens,
        waits_again=waits_again,
    )
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(long_asks.map(at_once), min_size=4, max_size=12),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["exact", "short", "random"]),
    reserve=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    sharing=st.sampled_from([Sharing.NONE, Sharing.PIPELINE]),
    fleet=st.sampled_from(FLEETS),
    dying=deaths(st.integers(0, 2), within_s=0.3),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask],
    seed: int,
    kind: str,
    reserve: float,
    sharing: Sharing,
    fleet: tuple[str, ...],
    dying: list[tuple[int, float]],
) -> None:
    cluster = new_cluster(seed, predictor_of(kind, seed), fleet, reserve=reserve, sharing=sharing)
    cluster.restart_workers((fleet[number % len(fleet)], at_s) for number, at_s in dying)
    run_and_check(cluster, wanted)


def crowd(seed: int) -> list[Ask]:
    rng = random.Random(seed)
    return [
        Ask(
            prompt=tuple(rng.choices(range(1000), k=rng.randint(1, 8))),
            max_tokens=rng.choice([6, 8, 10, 12, 60]),
            num_choices=1,
            at_s=number * 0.002,
            cancel_after_s=None,
            deadline_s=None,
            num_end_ids=0,
        )
        for number in range(40)
    ]


def entries_of(cluster: CheckedCluster) -> list[Entry]:
    records = cluster.router.state.ended
    answers = [answer for record in records for answer in record.answers]
    return [entry for answer in answers for entry in answer.timeline.entries]


def changes_of(cluster: CheckedCluster) -> list[Change]:
    return [entry.change for entry in entries_of(cluster)]


# Without these the tests above might show nothing.
@pytest.mark.parametrize("reserve", [0.1, 0.5])
def test_answers_do_wait_and_some_must_make_room(reserve: float) -> None:
    waited_s, num_made_room = 0.0, 0
    for seed in range(6):
        cluster = new_cluster(seed, MaxTokens(), ("mixed-0",), 24, reserve)
        run_and_check(cluster, crowd(seed))
        waited_s += sum(e.timings.generation_queue_s for e in cluster.finished.values())
        num_made_room += changes_of(cluster).count(Change.PREEMPTED)
    assert waited_s > 0.1
    assert bool(num_made_room) == (reserve == 0.5)


# PAPERS 1.4.3: the reserve first, then they wait with their KV, and only then is KV given up;
# whichever it is, every answer is right.
@pytest.mark.parametrize(
    ("num_blocks", "waits_again", "gives_up"),
    [(64, False, False), (40, True, False), (24, True, True)],
)
def test_answers_that_outgrow_their_prediction_cost_no_more_than_they_must(
    num_blocks: int, waits_again: bool, gives_up: bool
) -> None:
    outgrown: list[float] = []
    given_up: list[float] = []
    for seed in range(6):
        rng = random.Random(seed)
        wanted = [
            replace(ask, max_tokens=rng.choice([12, 24, 40]), at_s=0.0) for ask in crowd(seed)[:8]
        ]
        cluster = new_cluster(seed, ShortSighted(), ("mixed-0",), num_blocks, 0.1, Sharing.PIPELINE)
        run_and_check(cluster, wanted)
        for entry in entries_of(cluster):
            if entry.change is Change.OUTGROWN:
                outgrown.append(entry.at_s)
            elif entry.change is Change.PREEMPTED:
                given_up.append(entry.at_s)
    assert (bool(outgrown), bool(given_up)) == (waits_again, gives_up)
    assert not given_up or min(outgrown) < min(given_up)
    assert len(given_up) <= len(outgrown) / 8


def test_answers_that_wait_do_begin_in_blocks_of_others() -> None:
    num_guests = 0
    for seed in range(6):
        cluster = new_cluster(seed, MaxTokens(), ("mixed-0",), 24, 0.25, Sharing.PIPELINE)
        run_and_check(cluster, crowd(seed))
        in_line = [
            each.timings
            for each in cluster.finished.values()
            if each.timings.num_blocks_borrowed and each.timings.generation_queue_s > 0
        ]
        num_guests += len(in_line)
    assert num_guests > 0


# --- what it is for -----------------------------------------------------------------------------


def run_overloaded(policy: Policy) -> tuple[float, float, int]:
    """Mean seconds to the first token, the written share of what was allocated, and preemptions:
    more requests than one worker's KV memory has room for."""
    rng = random.Random(3)
    requests = [
        TraceRequest(0.02 * number, rng.randint(8, 64), rng.choice([600, 30, 60, 120, 200]))
        for number in range(300)
    ]
    scene = scene_of(requests, with_kv_tokens(load_hardware("a100"), 8000))
    record, outcomes = simulated(scene, policy, ClusterSpec(num_mixed=1))
    (role,) = record.roles
    written = role.written_block_s / role.allocated_block_s
    num_preemptions = sum(each.num_preemptions for each in outcomes.values())
    ttft_s = fmean(each.ttft_s or 0.0 for each in outcomes.values())
    return ttft_s, written, num_preemptions


# PAPERS 1.4.4 and 1.4.9: where prompts wait for the room of their answers, first tokens are later,
# and more of what is held is not written yet.
def test_prompts_do_not_wait_for_the_room_of_their_answers() -> None:
    known = replace(POLICIES["ecoserve"], predictor="oracle", bound=None, sharing=Sharing.NONE)
    coupled_s, coupled_share, _ = run_overloaded(replace(known, is_decoupled=False))
    apart_s, apart_share, num_preemptions = run_overloaded(known)
    assert apart_s < 0.9 * coupled_s
    assert apart_share > coupled_share
    assert num_preemptions == 0, "predictions are exact"
