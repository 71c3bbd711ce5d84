"""Prompts that begin alike: shared, awaited and cached KV is right, and every block comes back."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.asks_testing import asks, deaths, prompts_of_families
from simulator.testing import (
    Ask,
    CheckedCluster,
    check_answers,
    check_empty,
    new_cluster,
    run_and_check,
    start,
)

WORKERS = ["prefill-0", "prefill-1", "decode-0", "decode-1"]
# The first tokens of one of three documents, and something of its own.
family_asks = asks(
    prompt=prompts_of_families(num_families=3, max_shared=20, max_own=6, num_own_ids=3),
    max_tokens=st.integers(1, 12),
    num_choices=st.integers(1, 4),
    cancel_after_s=st.none() | st.floats(0, 0.1),
    # Half of all first tokens are the last: tasks that others wait for end early.
    num_end_ids=st.sampled_from([0, 100, 500]),
)
sizes = st.integers(10, 30)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(family_asks, min_size=2, max_size=12),
    seed=st.integers(0, 2**32),
    num_blocks=sizes,
    short_sighted=st.booleans(),
    second=st.booleans(),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask], seed: int, num_blocks: int, short_sighted: bool, second: bool
) -> None:
    cluster = new_cluster(seed, "default", num_blocks, short_sighted)
    if second:
        cluster.start_worker("prefill-1", "prefill", num_blocks)
    run_and_check(cluster, wanted)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(family_asks, min_size=2, max_size=10),
    seed=st.integers(0, 2**32),
    dying=deaths(st.sampled_from(WORKERS)),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask], seed: int, dying: list[tuple[str, float]]
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False)
    cluster.start_worker("prefill-1", "prefill", 24)
    cluster.restart_workers(dying)
    run_and_check(cluster, wanted)


def answer_alone(num_choices: int, prompts: list[tuple[int, ...]]) -> CheckedCluster:
    cluster = new_cluster(1, "default", 40, short_sighted=False, num_decode=1)
    run_and_check(
        cluster, [Ask(p, 5, num_choices, 0.0, None, None, num_end_ids=0) for p in prompts]
    )
    return cluster


def num_computed(cluster: CheckedCluster) -> int:
    return cluster.engine_of("prefill-0").num_computed_tokens


def test_several_answers_compute_and_move_their_prompt_once() -> None:
    prompt = tuple(range(22))
    cluster = answer_alone(4, [prompt])
    # Five full blocks of four tokens; the last two tokens are everybody's own.
    assert num_computed(cluster) == 22 + 3 * 2
    timings = [finished.timings for finished in cluster.finished.values()]
    assert sorted(t.num_blocks_moved for t in timings) == [1, 1, 1, 6]
    assert sorted(t.num_blocks_skipped for t in timings) == [0, 5, 5, 5]
    cached = sorted(finished.num_cached_tokens for finished in cluster.finished.values())
    assert cached == [0, 20, 20, 20]


def test_a_prompt_of_full_blocks_computes_its_last_block_for_each_answer() -> None:
    cluster = answer_alone(2, [tuple(range(16))])
    assert num_computed(cluster) == 16 + 4


def test_prompts_that_arrive_together_compute_what_they_share_once() -> None:
    shared = tuple(range(500, 516))
    cluster = answer_alone(1, [(*shared, number, number + 1) for number in range(5)])
    assert num_computed(cluster) == 18 + 4 * 2


def test_a_chat_goes_on_from_what_the_decode_worker_has() -> None:
    cluster = new_cluster(1, "default", 40, short_sighted=False, num_decode=1)
    first = Ask(tuple(range(10)), 7, 1, 0.0, None, None, num_end_ids=0)
    run_and_check(cluster, [first])
    ((key, tokens),) = cluster.tokens.items()
    second = Ask((*first.prompt, *tokens, 1, 2, 3), 4, 1, 0.0, None, None, num_end_ids=0)
    start(cluster, 1, second)
    cluster.run()
    check_answers(cluster, [first, second])
    finished = [each for other, each in cluster.finished.items() if other != key]
    # 17 tokens of the first turn, of which the last has no KV: four blocks on the decode worker,
    # two of them on the prefill worker as well.
    assert finished[0].num_cached_tokens == 8
    assert finished[0].timings.num_blocks_skipped == 4
    check_empty(cluster)


def test_a_hot_prefix_does_not_pile_everything_on_one_worker() -> None:
    cluster = new_cluster(5, "default", 400, short_sighted=False)
    cluster.start_worker("prefill-1", "prefill", 400)
    hot = tuple(range(300, 312))
    run_and_check(
        cluster, [Ask((*hot, n, *range(50)), 6, 1, 0.0, None, None, 0) for n in range(24)]
    )
    by_worker = [finished.timings.prefill_worker for finished in cluster.finished.values()]
    assert min(by_worker.count("prefill-0"), by_worker.count("prefill-1")) >= 8
    by_worker = [finished.timings.decode_worker for finished in cluster.finished.values()]
    assert min(by_worker.count("decode-0"), by_worker.count("decode-1")) >= 8
