"""For tests: requests for a simulated cluster, and what must hold once it is quiet."""

import random
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from cluster.ledger import Ledger, WorkerBook
from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.events import (
    CallerLeft,
    EmitFailed,
    EmitFinished,
    EmitTokens,
    RequestArrived,
    RequestSpec,
)
from router.state import RouterSettings
from runtime.clock import ManualClock
from scheduling.batch_time_recovery import Preemption
from scheduling.ids import RequestId, WorkerId
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.policy import GROWTH_RESERVE, Policy
from scheduling.policy_settings import policy_of
from scheduling.prediction import LengthPredictor, RequestFeatures, ResponseLength
from scheduling.sampling import SamplingParams, StopParams
from simulator.checked_engine import CheckedEngine, answer
from simulator.core_cluster import CoreCluster
from simulator.run_now import run_now
from simulator.simulated_worker import SimulatedWorker
from simulator.step_log import StepRun
from simulator.timing import RandomTiming
from simulator.worker_spec import WorkerSpec


class ShortSighted:
    """Predicts too little on purpose, so that responses have to grow."""

    def predict(self, features: RequestFeatures) -> ResponseLength:
        return ResponseLength(1, 1)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        pass


class Random:
    """Predicts anything that the caller allows; the same seed gives the same predictions."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def predict(self, features: RequestFeatures) -> ResponseLength:
        length = self._rng.randint(1, features.max_tokens)
        return ResponseLength(length, length)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        pass


class Expecting:
    """Predicts what it is told for a caller's limit, right or wrong, and elsewhere the limit."""

    def __init__(self, length_by_limit: Mapping[int, int]) -> None:
        self._length_by_limit = dict(length_by_limit)

    def predict(self, features: RequestFeatures) -> ResponseLength:
        length = self._length_by_limit.get(features.max_tokens, features.max_tokens)
        return ResponseLength.within(features, length, length)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        pass


class Heard:
    """An audience that remembers everything."""

    def __init__(self) -> None:
        self.token_ids: dict[tuple[RequestId, int], list[int]] = {}
        self.end_by_answer: dict[tuple[RequestId, int], EmitFinished] = {}
        self.failure_by_request: dict[RequestId, EmitFailed] = {}

    def tokens(self, emitted: EmitTokens, now: float, gaps_s: "array[float]") -> None:
        answer = self.token_ids.setdefault((emitted.request_id, emitted.index), [])
        answer.extend(emitted.tokens.token_ids)

    def finished(self, emitted: EmitFinished, now: float) -> None:
        assert (emitted.request_id, emitted.index) not in self.end_by_answer
        self.end_by_answer[emitted.request_id, emitted.index] = emitted

    def failed(self, emitted: EmitFailed, now: float) -> None:
        assert emitted.request_id not in self.failure_by_request
        self.failure_by_request[emitted.request_id] = emitted

    def planned(self, worker: SimulatedWorker, now: float) -> None:
        pass

    def stepped(self, worker: SimulatedWorker, run: StepRun) -> None:
        pass


class CheckedCluster(CoreCluster):
    """Small workers whose KV memory cannot be fooled, and random delays."""

    def __init__(
        self,
        router: RouterCore,
        ledger: Ledger,
        rng: random.Random,
        block_size: int = 4,
        num_swap_blocks: int = 0,
        max_num_seqs: int = 4,
        growth_reserve: float = GROWTH_RESERVE,
        policy: Policy | None = None,
        max_untold_tokens: int = 1,
        preemption: Preemption = Preemption.FIRST,
    ) -> None:
        self.heard = Heard()
        self.is_counting = max_untold_tokens > 1
        super().__init__(router, ledger, RandomTiming(rng), self.heard)
        self.tokens = self.heard.token_ids
        self.finished = self.heard.end_by_answer
        self.failed = self.heard.failure_by_request
        self._spec = WorkerSpec(
            "decode",
            num_blocks=1,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=8,
            num_swap_blocks=num_swap_blocks,
            growth_reserve=growth_reserve,
            max_untold_tokens=max_untold_tokens,
            preemption=preemption,
            # A block is a byte: where costs decide, both ways cost about the same.
            swap_bytes_per_s=800.0,
        )
        if policy is not None:
            self._spec = replace(
                self._spec,
                victims=policy.victims,
                is_preempting_eagerly=policy.is_preempting_eagerly,
                parked_yields=policy.parked_yields,
                is_growing_ahead=policy.is_growing_ahead,
                outgrown_wait_in_line=policy.outgrown_wait_in_line,
            )
        if policy is not None and policy.is_queued_on_workers:
            limits = self._spec.max_num_batched_tokens, max_num_seqs
            self._spec = replace(self._spec, batching=policy.batching_rule(*limits))

    def start_worker(
        self, worker_id: str, role: str, num_blocks: int, compatibility: str = "same"
    ) -> None:
        """Start a (new life of a) worker and connect it."""
        spec = replace(self._spec, role=role, num_blocks=num_blocks, compatibility=compatibility)
        engine = CheckedEngine(worker_id, spec.block_size, is_counting=self.is_counting)
        self.add_worker(worker_id, spec, engine)

    def restart_worker(self, worker_id: str) -> None:
        """It dies, and a new life of it, as large as it was, connects at once."""
        hello = self.worker_by_id[WorkerId(worker_id)].hello
        self.kill_worker(worker_id)
        num_blocks = hello.max_task_blocks or hello.num_blocks
        self.start_worker(worker_id, hello.role, num_blocks, hello.compatibility)

    def restart_workers(self, deaths: Iterable[tuple[str, float]]) -> None:
        """Each of them after so many seconds."""
        for worker_id, after_s in deaths:
            self.at(after_s, partial(self.restart_worker, worker_id))

    def engine_of(self, worker_id: str) -> CheckedEngine:
        """Its engine and KV memory."""
        engine = self.worker_by_id[WorkerId(worker_id)].engine
        assert isinstance(engine, CheckedEngine)
        return engine


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    prompt: tuple[int, ...]
    max_tokens: int
    num_choices: int
    at_s: float
    cancel_after_s: float | None
    deadline_s: float | None
    # So many tokens, from 1 on, end the answer: 100 of 1000 by default.
    num_end_ids: int = 100
    ttft_s: float = 1.0
    tpot_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Swapping:
    """Host memory of each decode worker, and the router's patience with what lies there."""

    num_blocks: int
    max_parked_s: float = 1.0
    preemption: Preemption = Preemption.FIRST


NO_SWAPPING = Swapping(0)


def spec_of(number: int, ask: Ask) -> RequestSpec:
    """The request, checked and tokenised; its id is f"r{number}"."""
    return RequestSpec(
        request_id=RequestId(f"r{number}"),
        prompt_token_ids=ask.prompt,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(ask.max_tokens, stop_token_ids=tuple(range(1, ask.num_end_ids + 1))),
        num_choices=ask.num_choices,
        tenant="default",
        session="",
        request_class="standard",
        ttft_s=ask.ttft_s,
        tpot_s=ask.tpot_s,
        deadline_s=ask.deadline_s,
    )


def new_cluster(
    seed: int,
    policy: str,
    num_blocks: int,
    short_sighted: bool,
    num_decode: int = 2,
    swapping: Swapping = NO_SWAPPING,
    worker_ids: tuple[str, ...] | None = None,
    predictor: LengthPredictor | None = None,
    max_untold_tokens: int = 1,
) -> CheckedCluster:
    """One prefill worker and some decode workers, or others: ids are ROLE-NUMBER."""
    if predictor is None:
        predictor = ShortSighted() if short_sighted else OnlineQuantiles(pooling_samples=4)
    chosen = policy_of(policy)
    router = RouterCore(
        chosen,
        predictor,
        RouterSettings(
            max_backlog_tokens=24,
            max_retries_per_task=100,
            length_quantum_tokens=4,
            max_parked_s=swapping.max_parked_s,
        ),
    )
    cluster = CheckedCluster(
        router,
        MemoryLedger(ManualClock()),
        random.Random(seed),
        num_swap_blocks=swapping.num_blocks,
        policy=chosen,
        max_untold_tokens=max_untold_tokens,
        preemption=swapping.preemption,
    )
    if worker_ids is None:
        worker_ids = ("prefill-0", *(f"decode-{number}" for number in range(num_decode)))
    for worker_id in worker_ids:
        cluster.start_worker(worker_id, worker_id.partition("-")[0], num_blocks)
    return cluster


def start(cluster: CheckedCluster, number: int, ask: Ask) -> None:
    """Send the request now."""
    spec = spec_of(number, ask)
    cluster.tell(RequestArrived(spec))
    if ask.cancel_after_s is not None:
        cluster.at(ask.cancel_after_s, lambda: cluster.tell(CallerLeft(spec.request_id)))


def asks_at_once(num_asks: int) -> list[Ask]:
    """Prompts of 10 tokens, answers of exactly 16; no two begin alike."""
    return [Ask(tuple(range(n, n + 10)), 16, 1, 0.0, None, None, 0) for n in range(num_asks)]


def run_and_check(cluster: CheckedCluster, wanted: list[Ask]) -> None:
    """Send each request at its time; in the end every answer is right and nothing is left."""
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start, cluster, number, ask))
    cluster.run()
    check_answers(cluster, wanted)
    check_empty(cluster)


def check_answers(cluster: CheckedCluster, wanted: list[Ask]) -> None:
    """Every answer is what one process alone would give, or a beginning of it and an error."""
    for number, ask in enumerate(wanted):
        spec = spec_of(number, ask)
        right = answer(ask.prompt, spec.stop, is_counting=cluster.is_counting)
        for index in range(ask.num_choices):
            got = tuple(cluster.tokens.get((spec.request_id, index), ()))
            if (spec.request_id, index) in cluster.finished:
                assert got == right
            else:
                assert spec.request_id in cluster.failed, "no answer and no error"
                assert got == right[: len(got)], "a lost, doubled or wrong token"
                assert ask.cancel_after_s is not None or ask.deadline_s is not None


def check_empty(cluster: CheckedCluster) -> None:
    """Nothing is held, promised or remembered anywhere."""
    state = cluster.router.state
    assert len(state.legs) == 0
    assert not state.sequence_by_task
    assert not state.request_by_id
    assert not state.stranded
    assert state.deadlines.next_at() is None
    assert len(state.prompt_queue) == len(state.generation_queue) == 0
    for worker in cluster.worker_by_id.values():
        assert worker.core.num_tasks == 0
        assert worker.core.pool.num_free_blocks == worker.core.pool.num_blocks
        assert worker.core.load.num_parked == 0
        assert not worker.engine.num_sequences
    books: tuple[WorkerBook, ...] = run_now(cluster.ledger.snapshot()).workers
    assert [book.num_reserved for book in books] == [0] * len(books)
