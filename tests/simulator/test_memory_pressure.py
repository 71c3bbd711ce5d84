"""Pools too small for what is asked: parked and swapped KV, and no way for all to wait for all."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cluster.ledger import WorkerLife
from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.events import DECODE_LEG, Action, Event, Reserve
from router.leg import LegState
from router.state import RouterSettings
from runtime.clock import ManualClock
from scheduling.batch_time_recovery import Preemption
from scheduling.block_pool import num_blocks_for
from scheduling.ids import WorkerId
from scheduling.parked_due import MAX_OVERTAKEN_S
from scheduling.policy import Policy
from scheduling.policy_settings import policy_of
from simulator.asks_testing import asks, deaths, prompts_of_families
from simulator.run_now import run_now
from simulator.testing import (
    Ask,
    CheckedCluster,
    ShortSighted,
    Swapping,
    asks_at_once,
    new_cluster,
    run_and_check,
)

WORKERS = ["prefill-0", "decode-0", "decode-1"]
family_asks = asks(
    prompt=prompts_of_families(num_families=4, max_shared=14, max_own=4, num_own_ids=4),
    # Prompt and answer fit a pool of 9 blocks of 4, and nothing beside them does.
    max_tokens=st.integers(1, 18),
    num_choices=st.integers(1, 3),
    cancel_after_s=st.none() | st.none() | st.floats(0, 0.4),
    deadline_s=st.none() | st.none() | st.floats(0.001, 1.5),
    num_end_ids=st.sampled_from([0, 0, 100]),
)
swappings = st.builds(
    Swapping,
    # None, so few that it is soon full, and plenty.
    num_blocks=st.sampled_from([0, 5, 12, 100]),
    max_parked_s=st.sampled_from([0.0, 0.01, 1.0]),
    preemption=st.sampled_from(Preemption),
)


def num_swapped_blocks(cluster: CheckedCluster) -> int:
    return sum(
        cluster.engine_of(worker_id).num_swapped_blocks for worker_id in cluster.worker_by_id
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(family_asks, min_size=3, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(["default", "fcfs"]),
    num_blocks=st.integers(9, 16),
    num_decode=st.integers(1, 2),
    swapping=swappings,
)
def test_everybody_is_answered_however_full_all_pools_are(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    num_decode: int,
    swapping: Swapping,
) -> None:
    cluster = new_cluster(seed, policy, num_blocks, True, num_decode, swapping)
    run_and_check(cluster, wanted)


class WatchedRouter(RouterCore):
    """Looks at what it asks for newcomers on workers that have parked answers of its own."""

    def __init__(self, policy: Policy, settings: RouterSettings) -> None:
        super().__init__(policy, ShortSighted(), settings)
        self.num_overtakes = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = super().handle(event, now)
        for action in actions:
            if isinstance(action, Reserve) and action.claim.role == DECODE_LEG:
                self._look(action, now)
        return actions

    def _look(self, reserve: Reserve, now: float) -> None:
        leg = self.state.legs.get(reserve.claim.task_id, DECODE_LEG)
        assert leg is not None
        if leg.state is LegState.RESUMING:
            return
        for worker_id, _ in reserve.preferences:
            view = self.state.fleet.get(worker_id)
            assert view is not None
            for task_id in view.parked.in_order():
                parked = view.decode_legs[task_id]
                assert parked.parked_at_s is not None
                assert now < parked.parked_due_at_s <= parked.parked_at_s + MAX_OVERTAKEN_S
                self.num_overtakes += 1


def watched(
    seed: int, policy: Policy, num_blocks: int, num_decode: int, swapping: Swapping
) -> tuple[CheckedCluster, WatchedRouter]:
    router_settings = RouterSettings(
        max_backlog_tokens=24, max_retries_per_task=100, max_parked_s=swapping.max_parked_s
    )
    router = WatchedRouter(policy, router_settings)
    cluster = CheckedCluster(
        router,
        MemoryLedger(ManualClock()),
        random.Random(seed),
        num_swap_blocks=swapping.num_blocks,
        policy=policy,
        preemption=swapping.preemption,
    )
    for worker_id in ("prefill-0", *WORKERS[1 : 1 + num_decode]):
        cluster.start_worker(worker_id, worker_id.partition("-")[0], num_blocks)
    return cluster, router


goals = {
    "ttft_s": st.sampled_from([0.0, 0.02, 1.0, 1000.0]),
    "tpot_s": st.sampled_from([0.001, 1.0, 10.0, math.inf]),
}
asks_with_goals = asks(
    prompt=prompts_of_families(num_families=4, max_shared=6, max_own=4, num_own_ids=4),
    max_tokens=st.integers(1, 18),
    at_s=st.floats(0, 0.5),
    cancel_after_s=st.none() | st.none() | st.floats(0, 0.4),
    deadline_s=st.none() | st.none() | st.floats(0.001, 1.5),
    num_end_ids=st.sampled_from([0, 0, 100]),
    **goals,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks_with_goals, min_size=8, max_size=24),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(["default", "accelgen", "fcfs+parked_yields=yes"]),
    num_blocks=st.integers(9, 16),
    num_decode=st.integers(1, 2),
    swapping=swappings,
)
def test_newcomers_overtake_a_parked_answer_only_until_it_is_due_and_everybody_is_answered(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    num_decode: int,
    swapping: Swapping,
) -> None:
    cluster, router = watched(seed, policy_of(policy), num_blocks, num_decode, swapping)
    run_and_check(cluster, wanted)
    event(f"overtaken: {router.num_overtakes > 0}")


@pytest.mark.parametrize("parked_yields", [True, False])
def test_a_stream_of_short_questions_does_not_wait_for_long_answers_with_time_to_spare(
    parked_yields: bool,
) -> None:
    """Answers without a goal fill the only worker, and make room for each other."""
    policy = replace(policy_of("default"), parked_yields=parked_yields)
    long = [replace(ask, tpot_s=math.inf) for ask in asks_at_once(6)]
    short = [
        Ask((900 + n, *range(3)), 1 + n % 2, 1, 0.02 * n, None, None, 0, ttft_s=0.05)
        for n in range(1, 30)
    ]
    cluster, router = watched(5, policy, 10, 1, Swapping(100))
    run_and_check(cluster, [*long, *short])
    assert len(cluster.finished) == len(long) + len(short)
    assert sum(finished.timings.num_swaps for finished in cluster.finished.values()) > 0
    assert (router.num_overtakes > 0) == parked_yields


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(family_asks, min_size=3, max_size=10),
    seed=st.integers(0, 2**32),
    swapping=swappings,
    dying=deaths(st.sampled_from(WORKERS), within_s=0.4),
)
def test_workers_killed_while_they_hold_swapped_kv_cost_no_token(
    wanted: list[Ask], seed: int, swapping: Swapping, dying: list[tuple[str, float]]
) -> None:
    cluster = new_cluster(seed, "fcfs", 10, True, 2, swapping)
    cluster.restart_workers(dying)
    run_and_check(cluster, wanted)


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_swapped_answer_goes_on_where_it_was_and_is_computed_once(policy: str) -> None:
    wanted = asks_at_once(12)
    cluster = new_cluster(7, policy, 10, True, num_decode=1, swapping=Swapping(100))
    run_and_check(cluster, wanted)
    timings = [finished.timings for finished in cluster.finished.values()]
    assert len(timings) == len(wanted)
    # Who makes room for whoever came before, or is further, may do so again and again.
    assert max(each.num_swaps for each in timings) < len(wanted)
    assert [each.num_preemptions for each in timings] == [each.num_swaps for each in timings]
    assert num_swapped_blocks(cluster) > 0
    # Every prompt once, every answer's tokens but the first on the decode worker: nothing again.
    computed = {w: cluster.engine_of(w).num_computed_tokens for w in WORKERS[:2]}
    assert computed == {"prefill-0": 12 * 10, "decode-0": 12 * 15}


def test_without_host_memory_the_same_answers_are_computed_again() -> None:
    wanted = asks_at_once(12)
    cluster = new_cluster(7, "fcfs", 10, True, num_decode=1)
    run_and_check(cluster, wanted)
    timings = [finished.timings for finished in cluster.finished.values()]
    assert sum(each.num_preemptions for each in timings) > 0
    assert sum(each.num_swaps for each in timings) == 0
    assert cluster.engine_of("prefill-0").num_computed_tokens > 12 * 10


def test_a_task_of_a_whole_pool_is_not_measured_by_a_pool_that_it_cannot_use() -> None:
    """The growth share is for it where no worker that it fits has more."""
    cluster = new_cluster(1, "default", 16, False, num_decode=1)
    cluster.start_worker("prefill-other", "prefill", 2, "other")
    cluster.start_worker("decode-other", "decode", 40, "other")
    cluster.start_worker("decode-leaving", "decode", 40)
    cluster.drain_worker("decode-leaving")
    cluster.run()
    run_and_check(cluster, [Ask(tuple(range(48)), 16, 1, 0.0, None, None, 0)])
    assert len(cluster.finished) == 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(family_asks, min_size=3, max_size=10),
    seed=st.integers(0, 2**32),
    num_decode=st.integers(1, 2),
    swapping=swappings,
)
def test_a_ledger_that_promises_more_than_there_is_books_no_block_twice(
    wanted: list[Ask], seed: int, num_decode: int, swapping: Swapping
) -> None:
    """As after it forgot what was held: it grants growth that no pool has room for yet."""
    cluster = new_cluster(seed, "fcfs", 10, True, num_decode, swapping)
    for worker_id in WORKERS[1 : 1 + num_decode]:
        hello = cluster.worker_by_id[WorkerId(worker_id)].hello
        life = WorkerLife(hello.worker_id, hello.incarnation)
        run_now(cluster.ledger.set_capacity(life, 100))

    def check_bookings() -> None:
        for leg in cluster.router.state.legs.held():
            sequence = cluster.router.state.sequence_by_task.get(leg.task_id)
            if sequence is not None and leg.role == DECODE_LEG:
                assert leg.num_blocks <= num_blocks_for(sequence.num_tokens_at_most, 4)

    for number in range(300):
        cluster.at(0.002 * number, check_bookings)
    run_and_check(cluster, wanted)
