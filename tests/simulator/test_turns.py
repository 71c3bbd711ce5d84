"""FastServe on mixed workers: answers pause, move to host memory and return; no token is lost."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decode_worker.turn_taking import TurnTakingCore
from scheduling.ids import WorkerId
from simulator.asks_testing import asks, at_once, deaths
from simulator.model_timing import LinearSteps
from simulator.testing import (
    Ask,
    CheckedCluster,
    Swapping,
    asks_at_once,
    new_cluster,
    run_and_check,
)

FLEETS = (
    ("mixed-0",),
    ("mixed-0", "mixed-1"),
    ("prefill-0", "mixed-0"),
    ("prefill-0", "decode-0", "mixed-0"),
)
sizes = st.sampled_from([0, 12, 60])


def fastserve(
    seed: int,
    num_blocks: int,
    num_host_blocks: int,
    *fleet: str,
    max_untold_tokens: int = 1,
) -> CheckedCluster:
    return new_cluster(
        seed,
        "fastserve",
        num_blocks,
        short_sighted=False,
        swapping=Swapping(num_host_blocks),
        worker_ids=fleet or ("mixed-0",),
        max_untold_tokens=max_untold_tokens,
    )


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks(), min_size=1, max_size=14),
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(10, 40),
    num_host_blocks=sizes,
    fleet=st.sampled_from(FLEETS),
    max_untold_tokens=st.sampled_from([1, 7]),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask],
    seed: int,
    num_blocks: int,
    num_host_blocks: int,
    fleet: tuple[str, ...],
    max_untold_tokens: int,
) -> None:
    cluster = fastserve(
        seed, num_blocks, num_host_blocks, *fleet, max_untold_tokens=max_untold_tokens
    )
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks().map(at_once), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    num_host_blocks=sizes,
    fleet=st.sampled_from(FLEETS),
    dying=deaths(st.integers(0, 2)),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask],
    seed: int,
    num_host_blocks: int,
    fleet: tuple[str, ...],
    dying: list[tuple[int, float]],
) -> None:
    cluster = fastserve(seed, 14, num_host_blocks, *fleet)
    cluster.restart_workers((fleet[number % len(fleet)], at_s) for number, at_s in dying)
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(
        asks(prompt=st.integers(0, 2).map(lambda family: (7,) * (4 * family + 5))),
        min_size=2,
        max_size=10,
    ),
    seed=st.integers(0, 2**32),
    num_host_blocks=sizes,
)
def test_answers_that_share_blocks_take_turns_as_well(
    wanted: list[Ask], seed: int, num_host_blocks: int
) -> None:
    run_and_check(fastserve(seed, 12, num_host_blocks), wanted)


def alike(num_prompt: int, max_tokens: int, num_choices: int) -> Ask:
    """Prompts that differ in length only, and answers that end at nothing else."""
    return Ask((7,) * num_prompt, max_tokens, num_choices, 0.0, None, None, 0)


def test_a_prompt_that_waits_to_share_blocks_leaves_its_turn_to_who_computes_them() -> None:
    """One that begins like a longer one, which had fallen into a lower queue: nobody computed."""
    cluster = fastserve(835, 9, 12)
    run_and_check(cluster, [alike(13, 4, 2), alike(5, 12, 1), alike(17, 12, 2)])


def test_who_would_have_no_room_for_its_next_token_does_not_come_back_for_it() -> None:
    """It came, could not go on, and left for the next one that could not, without an end."""
    cluster = fastserve(284, 10, 12)
    run_and_check(cluster, [alike(17, 13, 2), alike(5, 14, 2)])


def test_prompts_begin_while_running_answers_fill_the_device() -> None:
    """PAPERS section 10: who has had its quantum makes room for those who come."""
    cluster = fastserve(3, 14, 100)
    assert isinstance(cluster.worker_by_id[WorkerId("mixed-0")].core, TurnTakingCore)
    # Seven blocks each in the end: the device holds two of them.
    run_and_check(cluster, asks_at_once(8))
    timings = [each.timings for each in cluster.finished.values()]
    assert sum(each.num_swaps for each in timings) > 0
    assert max(each.ttft_s for each in timings) < min(each.total_s for each in timings)


def test_without_host_memory_nothing_moves_there() -> None:
    cluster = fastserve(3, 14, 0)
    run_and_check(cluster, asks_at_once(8))
    assert not any(each.timings.num_swaps for each in cluster.finished.values())


def test_only_of_a_worker_that_moves_kv_by_itself_copies_are_beside_an_iteration() -> None:
    (worker,) = fastserve(1, 14, 20).worker_by_id.values()
    other_cluster = new_cluster(1, "fcfs", 14, short_sighted=False, worker_ids=("mixed-0",))
    (other,) = other_cluster.worker_by_id.values()
    step = LinearSteps(first_s=0.25, more_s=0.0)
    worker.swap_s = other.swap_s = 1.0
    assert (worker.take_wait_s(step), other.take_wait_s(step)) == (0.75, 1.0)
    assert (worker.take_wait_s(step), other.take_wait_s(step)) == (0.0, 0.0)
    worker.swap_s = 0.2
    assert worker.take_wait_s(step) == 0.0
