"""Prompts that begin alike: shared, awaited and cached KV is right, and every block comes back."""

from functools import partial

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.testing import Ask, CheckedCluster, check_answers, check_empty, new_cluster, start

WORKERS = ["prefill-0", "prefill-1", "decode-0", "decode-1"]


def prompt_of(family: int, num_shared: int, tail: list[int]) -> tuple[int, ...]:
    """The first tokens of one of three documents, and something of its own."""
    return (*range(100 * family, 100 * family + num_shared), *tail)


prompts = st.builds(
    prompt_of,
    family=st.integers(1, 3),
    num_shared=st.integers(1, 20),
    tail=st.lists(st.integers(0, 2), max_size=6),
)
asks = st.builds(
    Ask,
    prompt=prompts,
    max_tokens=st.integers(1, 12),
    num_choices=st.integers(1, 4),
    at_s=st.floats(0, 0.1),
    cancel_after_s=st.none() | st.floats(0, 0.1),
    deadline_s=st.none() | st.floats(0.001, 0.3),
    # Half of all first tokens are the last: tasks that others wait for end early.
    num_end_ids=st.sampled_from([0, 100, 500]),
)
sizes = st.integers(10, 30)


def run(cluster: CheckedCluster, wanted: list[Ask]) -> None:
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start, cluster, number, ask))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=2, max_size=12),
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
    run(cluster, wanted)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=2, max_size=10),
    seed=st.integers(0, 2**32),
    kills=st.lists(
        st.tuples(st.sampled_from(WORKERS), st.floats(0.001, 0.2)), min_size=1, max_size=4
    ),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask], seed: int, kills: list[tuple[str, float]]
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False)
    cluster.start_worker("prefill-1", "prefill", 24)

    def restart(worker_id: str) -> None:
        cluster.kill_worker(worker_id)
        cluster.start_worker(worker_id, worker_id.partition("-")[0], 24)

    for worker_id, at_s in kills:
        cluster.at(at_s, partial(restart, worker_id))
    run(cluster, wanted)


def answer_alone(num_choices: int, prompts: list[tuple[int, ...]]) -> CheckedCluster:
    cluster = new_cluster(1, "default", 40, short_sighted=False, num_decode=1)
    run(cluster, [Ask(p, 5, num_choices, 0.0, None, None, num_end_ids=0) for p in prompts])
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
    run(cluster, [first])
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
    run(cluster, [Ask((*hot, n, *range(50)), 6, 1, 0.0, None, None, 0) for n in range(24)])
    by_worker = [finished.timings.prefill_worker for finished in cluster.finished.values()]
    assert min(by_worker.count("prefill-0"), by_worker.count("prefill-1")) >= 8
    by_worker = [finished.timings.decode_worker for finished in cluster.finished.values()]
    assert min(by_worker.count("decode-0"), by_worker.count("decode-1")) >= 8
