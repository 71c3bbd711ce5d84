"""Mixed workers alone and beside others: every answer right, every block back, kills included."""

from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduling.ids import RequestId
from scheduling.lifecycle import Change
from simulator.testing import (
    Ask,
    CheckedCluster,
    Swapping,
    check_answers,
    check_empty,
    new_cluster,
    start,
)

FLEETS = (
    ("mixed-0",),
    ("mixed-0", "mixed-1"),
    ("prefill-0", "mixed-0"),
    ("prefill-0", "decode-0", "mixed-0"),
)
asks = st.builds(
    Ask,
    prompt=st.lists(st.integers(0, 999), min_size=1, max_size=20).map(tuple),
    max_tokens=st.integers(1, 16),
    num_choices=st.integers(1, 2),
    at_s=st.floats(0, 0.1),
    cancel_after_s=st.none() | st.floats(0, 0.2),
    deadline_s=st.none() | st.floats(0.001, 0.3),
)


def run(cluster: CheckedCluster, wanted: list[Ask]) -> None:
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start, cluster, number, ask))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(["default", "fcfs"]),
    num_blocks=st.integers(10, 40),
    short_sighted=st.booleans(),
    num_swap_blocks=st.sampled_from([0, 30]),
    fleet=st.sampled_from(FLEETS),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    short_sighted: bool,
    num_swap_blocks: int,
    fleet: tuple[str, ...],
) -> None:
    swapping = Swapping(num_swap_blocks)
    cluster = new_cluster(
        seed, policy, num_blocks, short_sighted, swapping=swapping, worker_ids=fleet
    )
    run(cluster, wanted)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
    fleet=st.sampled_from(FLEETS),
    kills=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 0.2)),
        min_size=1,
        max_size=4,
    ),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask], seed: int, fleet: tuple[str, ...], kills: list[tuple[int, float]]
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False, worker_ids=fleet)

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


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_crowded_mixed_worker_preempts_and_still_answers_everyone(policy: str) -> None:
    wanted = [Ask(tuple(range(n, n + 10)), 16, 1, 0.0, None, None, 0) for n in range(12)]
    cluster = new_cluster(7, policy, 10, short_sighted=True, worker_ids=("mixed-0",))
    run(cluster, wanted)
    timings = [finished.timings for finished in cluster.finished.values()]
    assert sum(each.num_preemptions for each in timings) > 0


def test_a_mixed_worker_moves_no_block_and_says_so_in_the_timeline() -> None:
    cluster = new_cluster(1, "default", 24, short_sighted=False, worker_ids=("mixed-0",))
    run(cluster, [Ask((1, 2, 3, 4, 5), 8, 1, 0.0, None, None, 0)])
    (finished,) = cluster.finished.values()
    timings = finished.timings
    assert (timings.prefill_worker, timings.decode_worker) == ("mixed-0", "mixed-0")
    assert (timings.num_blocks_moved, timings.transfer_s) == (0, 0.0)
    record = cluster.router.state.ended.get(RequestId("r0"))
    assert record is not None
    changes = [entry.change for answer in record.answers for entry in answer.timeline.entries]
    assert Change.KEPT_IN_PLACE in changes
