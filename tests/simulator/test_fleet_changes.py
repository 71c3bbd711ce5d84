"""Workers that come, go, drain or are too small, and request ids that are used again."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.events import CallerLeft, RequestArrived
from scheduling.ids import RequestId, WorkerId
from simulator.testing import Ask, check_answers, check_empty, new_cluster, spec_of, start


def ask(num_prompt: int, max_tokens: int, deadline_s: float | None = None) -> Ask:
    """A request that never meets an end token."""
    return Ask(tuple(range(num_prompt)), max_tokens, 1, 0.0, None, deadline_s, num_end_ids=0)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), again_after_s=st.floats(0, 0.05))
def test_a_request_id_may_be_used_again_right_after_a_cancel(
    seed: int, again_after_s: float
) -> None:
    """What the workers still do and say for the first call must not reach the second."""
    cluster = new_cluster(seed, "default", 12, short_sighted=False)
    first, second = ask(9, 12), ask(11, 6)
    request_id = RequestId("r0")

    def again() -> None:
        cluster.tell(CallerLeft(request_id))
        cluster.failed.pop(request_id, None)
        cluster.finished.pop((request_id, 0), None)
        cluster.tokens.pop((request_id, 0), None)
        cluster.tell(RequestArrived(spec_of(0, second)))

    start(cluster, 0, first)
    cluster.at(again_after_s, again)
    cluster.run()
    assert (request_id, 0) in cluster.finished
    assert cluster.finished[request_id, 0].timings.num_migrations == 0
    check_answers(cluster, [second])
    check_empty(cluster)


def test_the_deadline_of_a_cancelled_call_does_not_end_a_later_one_of_the_same_id() -> None:
    cluster = new_cluster(1, "default", 12, short_sighted=False)
    start(cluster, 0, ask(8, 12, deadline_s=0.05))
    cluster.tell(CallerLeft(RequestId("r0")))
    cluster.failed.clear()
    start(cluster, 0, ask(8, 12))
    cluster.run()
    assert cluster.now > 0.05, "the run ended before the old deadline"
    assert not cluster.failed
    check_answers(cluster, [ask(8, 12)])
    check_empty(cluster)


def test_a_prompt_that_fits_no_connected_worker_holds_nobody_up() -> None:
    cluster = new_cluster(1, "default", 12, short_sighted=False, num_decode=1)
    cluster.start_worker("decode-large", "decode", 40)
    cluster.start_worker("prefill-large", "prefill", 40)
    large, small = ask(80, 16), ask(8, 8)
    start(cluster, 0, large)
    cluster.kill_worker("decode-large")
    cluster.run()
    start(cluster, 1, small)
    cluster.run()
    assert (RequestId("r1"), 0) in cluster.finished
    assert (RequestId("r0"), 0) not in cluster.finished
    cluster.start_worker("decode-large", "decode", 40)
    cluster.run()
    check_answers(cluster, [large, small])
    assert len(cluster.finished) == 2
    check_empty(cluster)


def test_parked_kv_without_a_decode_worker_to_go_to_is_computed_elsewhere() -> None:
    cluster = new_cluster(3, "default", 24, short_sighted=False, num_decode=0)
    cluster.start_worker("decode-0", "decode", 24)
    cluster.start_worker("prefill-other", "prefill", 24, "other")
    cluster.start_worker("decode-other", "decode", 24, "other")
    wanted = [ask(20, 16) for _ in range(8)]
    for number, each in enumerate(wanted):
        start(cluster, number, each)
    cluster.at(0.02, lambda: cluster.kill_worker("decode-0"))
    cluster.run()
    assert len(cluster.finished) == len(wanted)
    check_answers(cluster, wanted)
    check_empty(cluster)


def test_a_prompt_goes_only_where_a_decode_worker_can_take_it_over() -> None:
    cluster = new_cluster(1, "default", 40, short_sighted=False, num_decode=0)
    cluster.start_worker("decode-small", "decode", 4)
    cluster.start_worker("prefill-other", "prefill", 40, "other")
    cluster.start_worker("decode-other", "decode", 40, "other")
    wanted = [ask(40, 16)]
    start(cluster, 0, wanted[0])
    cluster.run()
    check_answers(cluster, wanted)
    timings = cluster.finished[RequestId("r0"), 0].timings
    assert (timings.prefill_worker, timings.num_migrations) == ("prefill-other", 0)
    check_empty(cluster)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), drains_at_s=st.floats(0.001, 0.1), num_asks=st.integers(1, 10))
def test_a_draining_worker_gets_no_new_tasks_and_finishes_those_it_has(
    seed: int, drains_at_s: float, num_asks: int
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False)
    cluster.start_worker("prefill-1", "prefill", 24)
    leaving = ["prefill-0", "decode-0"]
    rng = random.Random(seed)
    wanted = [ask(rng.randint(1, 20), rng.randint(2, 16)) for _ in range(num_asks)]
    for number, each in enumerate(wanted):
        start(cluster, number, each)

    def drain() -> None:
        for worker_id in leaving:
            cluster.drain_worker(worker_id)

    def late() -> None:
        before.extend(cluster.worker_by_id[WorkerId(name)].core.num_tasks for name in leaving)
        start(cluster, num_asks, ask(6, 5))

    before: list[int] = []
    cluster.at(drains_at_s, drain)
    # Long after the news has arrived, however late.
    cluster.at(drains_at_s + 10.0, late)
    wanted.append(ask(6, 5))
    cluster.run()
    assert before == [0, 0], "a draining worker got new tasks and never came to an end"
    check_answers(cluster, wanted)
    assert cluster.router.state.counters.num_migrations == 0
    finished = cluster.finished[RequestId(f"r{num_asks}"), 0].timings
    assert (finished.prefill_worker, finished.decode_worker) == ("prefill-1", "decode-1")
    check_empty(cluster)
