"""Mixed workers alone and beside others: every answer right, every block back, kills included."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduling.ids import RequestId
from scheduling.lifecycle import Change
from simulator.asks_testing import asks, at_once, deaths
from simulator.testing import Ask, Swapping, asks_at_once, new_cluster, run_and_check

FLEETS = (
    ("mixed-0",),
    ("mixed-0", "mixed-1"),
    ("prefill-0", "mixed-0"),
    ("prefill-0", "decode-0", "mixed-0"),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks(), min_size=1, max_size=12),
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
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    # At the very start nobody is dead yet, so nothing is refused for want of a worker.
    wanted=st.lists(asks().map(at_once), min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
    fleet=st.sampled_from(FLEETS),
    dying=deaths(st.integers(0, 2)),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask], seed: int, fleet: tuple[str, ...], dying: list[tuple[int, float]]
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False, worker_ids=fleet)
    cluster.restart_workers((fleet[number % len(fleet)], at_s) for number, at_s in dying)
    run_and_check(cluster, wanted)


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_crowded_mixed_worker_preempts_and_still_answers_everyone(policy: str) -> None:
    wanted = asks_at_once(12)
    cluster = new_cluster(7, policy, 10, short_sighted=True, worker_ids=("mixed-0",))
    run_and_check(cluster, wanted)
    timings = [finished.timings for finished in cluster.finished.values()]
    assert sum(each.num_preemptions for each in timings) > 0


def test_a_mixed_worker_moves_no_block_and_says_so_in_the_timeline() -> None:
    cluster = new_cluster(1, "default", 24, short_sighted=False, worker_ids=("mixed-0",))
    run_and_check(cluster, [Ask((1, 2, 3, 4, 5), 8, 1, 0.0, None, None, 0)])
    (finished,) = cluster.finished.values()
    timings = finished.timings
    assert (timings.prefill_worker, timings.decode_worker) == ("mixed-0", "mixed-0")
    assert (timings.num_blocks_moved, timings.transfer_s) == (0, 0.0)
    record = cluster.router.state.ended.get(RequestId("r0"))
    assert record is not None
    changes = [entry.change for answer in record.answers for entry in answer.timeline.entries]
    assert Change.KEPT_IN_PLACE in changes
