"""Pools too small for what is asked: parked and swapped KV, and no way for all to wait for all."""

from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.ledger import WorkerLife
from router.events import DECODE_LEG
from scheduling.block_pool import num_blocks_for
from scheduling.ids import WorkerId
from simulator.run_now import run_now
from simulator.testing import (
    Ask,
    CheckedCluster,
    Swapping,
    check_answers,
    check_empty,
    new_cluster,
    start,
)

WORKERS = ["prefill-0", "decode-0", "decode-1"]

prompts = st.builds(
    lambda family, num_shared, tail: (*range(100 * family, 100 * family + num_shared), *tail),
    family=st.integers(1, 4),
    num_shared=st.integers(1, 14),
    tail=st.lists(st.integers(0, 3), max_size=4),
)
asks = st.builds(
    Ask,
    prompt=prompts,
    # Prompt and answer fit a pool of 9 blocks of 4, and nothing beside them does.
    max_tokens=st.integers(1, 18),
    num_choices=st.integers(1, 3),
    at_s=st.floats(0, 0.1),
    cancel_after_s=st.none() | st.none() | st.floats(0, 0.4),
    deadline_s=st.none() | st.none() | st.floats(0.001, 1.5),
    num_end_ids=st.sampled_from([0, 0, 100]),
)
swappings = st.builds(
    Swapping,
    # None, so few that it is soon full, and plenty.
    num_blocks=st.sampled_from([0, 5, 12, 100]),
    max_parked_s=st.sampled_from([0.0, 0.01, 1.0]),
)


def run(cluster: CheckedCluster, wanted: list[Ask]) -> None:
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start, cluster, number, ask))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


def num_swapped_blocks(cluster: CheckedCluster) -> int:
    return sum(
        cluster.engine_of(worker_id).num_swapped_blocks for worker_id in cluster.worker_by_id
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=3, max_size=12),
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
    run(cluster, wanted)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=3, max_size=10),
    seed=st.integers(0, 2**32),
    swapping=swappings,
    kills=st.lists(
        st.tuples(st.sampled_from(WORKERS), st.floats(0.001, 0.4)), min_size=1, max_size=4
    ),
)
def test_workers_killed_while_they_hold_swapped_kv_cost_no_token(
    wanted: list[Ask], seed: int, swapping: Swapping, kills: list[tuple[str, float]]
) -> None:
    cluster = new_cluster(seed, "fcfs", 10, True, 2, swapping)

    def restart(worker_id: str) -> None:
        cluster.kill_worker(worker_id)
        cluster.start_worker(worker_id, worker_id.partition("-")[0], 10)

    for worker_id, at_s in kills:
        cluster.at(at_s, partial(restart, worker_id))
    run(cluster, wanted)


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_swapped_answer_goes_on_where_it_was_and_is_computed_once(policy: str) -> None:
    wanted = [Ask(tuple(range(n, n + 10)), 16, 1, 0.0, None, None, 0) for n in range(12)]
    cluster = new_cluster(7, policy, 10, True, num_decode=1, swapping=Swapping(100))
    run(cluster, wanted)
    timings = [finished.timings for finished in cluster.finished.values()]
    assert len(timings) == len(wanted)
    # Who came last makes room again and again under fcfs, for whoever came before.
    most = max(each.num_swaps for each in timings)
    assert most == 1 or (policy == "fcfs" and most < len(wanted))
    assert [each.num_preemptions for each in timings] == [each.num_swaps for each in timings]
    assert num_swapped_blocks(cluster) > 0
    # Every prompt once, every answer's tokens but the first on the decode worker: nothing again.
    computed = {w: cluster.engine_of(w).num_computed_tokens for w in WORKERS[:2]}
    assert computed == {"prefill-0": 12 * 10, "decode-0": 12 * 15}


def test_without_host_memory_the_same_answers_are_computed_again() -> None:
    wanted = [Ask(tuple(range(n, n + 10)), 16, 1, 0.0, None, None, 0) for n in range(12)]
    cluster = new_cluster(7, "fcfs", 10, True, num_decode=1)
    run(cluster, wanted)
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
    run(cluster, [Ask(tuple(range(48)), 16, 1, 0.0, None, None, 0)])
    assert len(cluster.finished) == 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=3, max_size=10),
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
    run(cluster, wanted)
