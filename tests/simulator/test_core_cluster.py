"""The router, prefill and decode cores together: any interleaving ends, right and empty."""

import random
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.ledger import WorkerBook
from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.events import CallerLeft, RequestArrived, RequestSpec
from router.state import RouterSettings
from runtime.clock import ManualClock
from scheduling.ids import RequestId
from scheduling.policy import policy_named
from scheduling.prediction import OnlineQuantiles, RequestFeatures, ResponseLength
from scheduling.sampling import SamplingParams, StopParams
from simulator.core_cluster import CoreCluster, answer, run_now


class ShortSighted:
    """Predicts too little on purpose, so that responses have to grow."""

    def predict(self, features: RequestFeatures) -> ResponseLength:
        return ResponseLength(1, 1)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        pass


@dataclass(frozen=True)
class Ask:
    prompt: tuple[int, ...]
    max_tokens: int
    num_choices: int
    at_s: float
    cancel_after_s: float | None
    deadline_s: float | None
    # Tokens below this end the answer: 100 of 1000 by default.
    num_end_ids: int = 100


asks = st.builds(
    Ask,
    prompt=st.lists(st.integers(0, 999), min_size=1, max_size=20).map(tuple),
    max_tokens=st.integers(1, 16),
    num_choices=st.integers(1, 2),
    at_s=st.floats(0, 0.1),
    cancel_after_s=st.none() | st.floats(0, 0.2),
    deadline_s=st.none() | st.floats(0.001, 0.3),
)


def spec_of(number: int, ask: Ask) -> RequestSpec:
    return RequestSpec(
        request_id=RequestId(f"r{number}"),
        prompt_token_ids=ask.prompt,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(ask.max_tokens, stop_token_ids=tuple(range(ask.num_end_ids))),
        num_choices=ask.num_choices,
        tenant="default",
        session="",
        request_class="standard",
        ttft_s=1.0,
        tpot_s=0.1,
        deadline_s=ask.deadline_s,
    )


def new_cluster(
    seed: int, policy: str, num_blocks: int, short_sighted: bool, num_decode: int = 2
) -> CoreCluster:
    router = RouterCore(
        policy_named(policy, 0.5, 4),
        ShortSighted() if short_sighted else OnlineQuantiles(min_samples=4),
        RouterSettings(max_backlog_tokens=24, max_retries_per_task=100),
    )
    cluster = CoreCluster(router, MemoryLedger(ManualClock()), random.Random(seed))
    cluster.add_worker("prefill-0", "prefill", num_blocks)
    for number in range(num_decode):
        cluster.add_worker(f"decode-{number}", "decode", num_blocks)
    return cluster


def start(cluster: CoreCluster, number: int, ask: Ask) -> None:
    spec = spec_of(number, ask)
    cluster.tell(RequestArrived(spec))
    if ask.cancel_after_s is not None:
        cluster.at(ask.cancel_after_s, lambda: cluster.tell(CallerLeft(spec.request_id)))


def check_answers(cluster: CoreCluster, wanted: list[Ask]) -> None:
    for number, ask in enumerate(wanted):
        spec = spec_of(number, ask)
        right = answer(ask.prompt, spec.stop)
        for index in range(ask.num_choices):
            got = tuple(cluster.tokens.get((spec.request_id, index), ()))
            if (spec.request_id, index) in cluster.finished:
                assert got == right
            else:
                assert spec.request_id in cluster.failed, "no answer and no error"
                assert got == right[: len(got)], "a lost, doubled or wrong token"
                assert ask.cancel_after_s is not None or ask.deadline_s is not None


def check_empty(cluster: CoreCluster) -> None:
    state = cluster.router.state
    assert len(state.legs) == 0
    assert not state.sequence_by_task
    assert not state.request_by_id
    assert len(state.prompt_queue) == len(state.generation_queue) == 0
    for worker in cluster.worker_by_id.values():
        assert worker.core.num_tasks == 0
        assert worker.core.pool.num_free_blocks == worker.core.pool.num_blocks
        assert not worker.sequence_by_slot
    books: tuple[WorkerBook, ...] = run_now(cluster.ledger.snapshot()).workers
    assert [book.num_reserved for book in books] == [0] * len(books)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(["default", "fcfs"]),
    num_blocks=st.integers(10, 40),
    short_sighted=st.booleans(),
)
def test_every_answer_is_right_and_every_block_comes_back(
    wanted: list[Ask], seed: int, policy: str, num_blocks: int, short_sighted: bool
) -> None:
    cluster = new_cluster(seed, policy, num_blocks, short_sighted)
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start, cluster, number, ask))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks, min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
    kills=st.lists(
        st.tuples(st.sampled_from(["prefill-0", "decode-0", "decode-1"]), st.floats(0, 0.2)),
        min_size=1,
        max_size=4,
    ),
)
def test_killed_workers_cost_no_token(
    wanted: list[Ask], seed: int, kills: list[tuple[str, float]]
) -> None:
    cluster = new_cluster(seed, "default", 24, short_sighted=False)
    for number, ask in enumerate(wanted):
        # At the very start nobody is dead yet, so nothing is refused for want of a worker.
        cluster.at(0.0, partial(start, cluster, number, ask))

    def restart(worker_id: str) -> None:
        cluster.kill_worker(worker_id)
        cluster.add_worker(worker_id, worker_id.partition("-")[0], 24)

    for worker_id, at_s in kills:
        cluster.at(0.001 + at_s, partial(restart, worker_id))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_crowded_cluster_preempts_and_still_answers_everyone(policy: str) -> None:
    wanted = [Ask(tuple(range(n, n + 10)), 16, 1, 0.0, None, None, 0) for n in range(12)]
    cluster = new_cluster(7, policy, num_blocks=10, short_sighted=True, num_decode=1)
    for number, ask in enumerate(wanted):
        start(cluster, number, ask)
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)
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
