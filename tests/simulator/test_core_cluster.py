"""The router, prefill and decode cores together: any interleaving ends, right and empty."""

import random
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduling.ids import RequestId
from simulator.asks_testing import asks, at_once, deaths
from simulator.testing import Ask, asks_at_once, new_cluster, run_and_check, start


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks(), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(["default", "fcfs"]),
    num_blocks=st.integers(10, 40),
    short_sighted=st.booleans(),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask], seed: int, policy: str, num_blocks: int, short_sighted: bool
) -> None:
    run_and_check(new_cluster(seed, policy, num_blocks, short_sighted), wanted)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    # At the very start nobody is dead yet, so nothing is refused for want of a worker.
    wanted=st.lists(asks().map(at_once), min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
    dying=deaths(st.sampled_from(["prefill-0", "decode-0", "decode-1"])),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask], seed: int, dying: list[tuple[str, float]]
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False)
    cluster.restart_workers(dying)
    run_and_check(cluster, wanted)


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_crowded_cluster_preempts_and_still_answers_everyone(policy: str) -> None:
    wanted = asks_at_once(12)
    cluster = new_cluster(7, policy, num_blocks=10, short_sighted=True, num_decode=1)
    run_and_check(cluster, wanted)
    assert len(cluster.finished) == len(wanted)
    assert cluster.router.state.counters.num_preemptions > 0


def test_binding_is_early_with_room_and_late_without() -> None:
    cluster = new_cluster(1, "default", num_blocks=10, short_sighted=False, num_decode=1)
    for number in range(6):
        start(cluster, number, Ask(tuple(range(100 + number, 112 + number)), 8, 1, 0.0, None, None))
    cluster.run()
    early = {finished.timings.early_binding for finished in cluster.finished.values()}
    assert early == {True, False}


def test_the_same_events_give_the_same_run() -> None:
    def run() -> list[tuple[RequestId, int, tuple[int, ...], float]]:
        cluster = new_cluster(3, "default", num_blocks=12, short_sighted=True)
        for number in range(8):
            start(cluster, number, Ask(tuple(range(number + 5)), 12, 1, 0.0, None, None))
        cluster.run()
        return [
            (*key, tuple(cluster.tokens[key]), finished.timings.total_s)
            for key, finished in cluster.finished.items()
        ]

    assert run() == run()


def test_what_travels_one_link_arrives_in_the_order_in_which_it_was_sent() -> None:
    """Links are TCP streams; a rounded sum once let a PushTo overtake its StartPrefill."""
    print("seed 5")
    dice = random.Random(5)
    for _ in range(200):
        cluster = new_cluster(dice.randrange(2**32), "default", 8, short_sighted=False)
        link = object()
        arrived: list[int] = []
        for number in range(20):
            cluster.now += dice.uniform(0, 0.0002)
            cluster._in_order(link, partial(arrived.append, number))
        cluster.run()
        assert arrived == list(range(20))
