"""One run: a workload through a cluster of the product's cores, in virtual time.

Nothing here decides anything. Requests arrive when the trace says, answers are as long as it says,
iterations take as long as the hardware's model says; all else is the router's and the workers' own.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cluster.memory_ledger import MemoryLedger
from decode_worker.core import DecodeCore
from router.core import RouterCore
from router.events import EmitFailed, EmitFinished, EmitTokens, RequestArrived, RequestSpec
from router.state import RouterSettings
from runtime.clock import ManualClock
from runtime.collector import spared_collector
from scheduling.batch_time import shape_of
from scheduling.batch_time_online import PassTimeError
from scheduling.batch_time_recovery import Preemption
from scheduling.errors import TandemError
from scheduling.ids import RequestId
from scheduling.lifecycle import TERMINAL
from scheduling.policy import Policy
from scheduling.prefix_chain import PromptPrefix
from scheduling.push_pacing import KvOverlap
from scheduling.sampling import SamplingParams, StopParams
from simulator.cluster_spec import ClusterSpec
from simulator.core_cluster import CoreCluster
from simulator.counting_engine import CountingEngine
from simulator.follow_ups import FollowUps
from simulator.hardware.description import Hardware
from simulator.metrics.live_request import LiveRequest
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import Status
from simulator.metrics.role_tally import Iteration, WorkerSample
from simulator.metrics.run_record import RunRecord
from simulator.model_timing import LEDGER_LATENCY_S, LINK_LATENCY_S, ModelTiming
from simulator.prompts import PromptTokens
from simulator.simulated_worker import SimulatedWorker
from simulator.slo import RequestSlo
from simulator.step_log import MAX_UNTOLD_TOKENS, StepRun
from simulator.traces.workload import TraceRequest, Workload
from simulator.worker_spec import WorkerSpec

# Between two looks at the progress.
EVENTS_AT_ONCE = 256
# Where a request has no goal, a day: it goes behind all that have one.
_NO_GOAL_S = 86_400.0
# Of all prompts of a workload in which nothing is cached.
_NO_PREFIX = PromptPrefix((), "")


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is run, whatever the policy."""

    workload: Workload
    hardware: Hardware
    # Of each request, in the order of the workload.
    slos: tuple[RequestSlo, ...]
    # What callers allow their answers; what is longer is cut off.
    max_tokens: int
    # All times of the workload are divided by it.
    rate_scale: float = 1.0
    # Workers cache prefixes, and prompts hold the tokens that the workload's names stand for.
    prefix_caching: bool = False
    # Host memory of each worker for KV that makes room.
    swap_bytes: int = 0
    # Of prefill workers.
    kv_overlap: KvOverlap = KvOverlap.AUTO
    # 1: each step and each token is an event of its own. The outcome is the same, later.
    max_untold_tokens: int = MAX_UNTOLD_TOKENS
    # Callers allow each answer exactly what it takes, instead of max_tokens.
    are_lengths_allowed: bool = False
    # A frame between router and worker, one way, and a question to the ledger with its answer.
    link_latency_s: float = LINK_LATENCY_S
    ledger_latency_s: float = LEDGER_LATENCY_S


@dataclass(slots=True)
class Failure:
    """Requests that ended with one kind of error."""

    first_message: str
    count: int = 0


class Simulation:
    """Runs once."""

    def __init__(
        self, scenario: Scenario, policy: Policy, cluster: ClusterSpec, recorder: RunRecorder
    ) -> None:
        self._scenario = scenario
        self._recorder = recorder
        self._live: dict[RequestId, LiveRequest] = {}
        # In the router's queues, as the recorder knows.
        self._num_waiting = (0, 0)
        self._position = 0
        self._follow_ups = FollowUps(scenario.workload)
        self._prompts = PromptTokens(scenario.workload, is_shared=scenario.prefix_caching)
        # Of requests that failed, by the name of the error.
        self.failure_by_error: dict[str, Failure] = {}
        hardware = scenario.hardware
        router = RouterCore(policy, policy.new_predictor(), router_settings(scenario))
        timing = ModelTiming(
            batch=hardware.batch_time_model(),
            transfer=hardware.transfer.model(),
            swap=hardware.swap_model(),
            block_bytes=hardware.kv.bytes_per_token * hardware.kv.block_size,
            link_latency_s=scenario.link_latency_s,
            ledger_latency_s=scenario.ledger_latency_s,
        )
        clock = ManualClock()
        self._cluster = CoreCluster(router, MemoryLedger(clock), timing, self, clock)
        self._cluster.is_checking = False
        lengths = [request.num_output_tokens for request in scenario.workload.requests]
        for role, count in cluster.counts:
            spec = worker_spec(role, scenario, policy)
            for number in range(count):
                worker_id = f"{role}-{number}"
                recorder.worker_added(
                    worker_id, role, spec.num_blocks, 0.0, hardware.gpus_per_worker
                )
                self._cluster.add_worker(worker_id, spec, CountingEngine(lengths))

    def run(self, goes_on: Callable[[float], bool] = lambda now: True) -> RunRecord:
        """To the end of the last answer.

        `goes_on` is told the virtual time now and then; once it says no, the run is over: what has
        not ended by then counts as missed, what has not arrived does not count.
        """
        self._schedule_next()
        with spared_collector():
            while not self._cluster.run_some(EVENTS_AT_ONCE):
                if not goes_on(self._cluster.now):
                    break
        return replace(
            self._recorder.finish(self._cluster.now),
            length_calibration=self._cluster.router.state.calibration.report(),
            pass_time_error_by_role=self._pass_time_errors(),
        )

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self._cluster.now

    def _pass_time_errors(self) -> dict[str, PassTimeError]:
        worst: dict[str, PassTimeError] = {}
        for worker in self._cluster.worker_by_id.values():
            role, error = worker.hello.role, worker.core.load.pass_time_error
            if error is not None and (role not in worst or error.p90 > worst[role].p90):
                worst[role] = error
        return worst

    # --- what callers do ----------------------------------------------------------------------

    def _schedule_next(self) -> None:
        """The next request that waits for nobody's answer."""
        requests = self._scenario.workload.requests
        while self._position < len(requests):
            number, self._position = self._position, self._position + 1
            if requests[number].after_previous_s is None:
                arrival_s = requests[number].arrival_s / self._scenario.rate_scale
                delay_s = max(0.0, arrival_s - self._cluster.now)
                self._cluster.at(delay_s, partial(self._arrive_and_schedule, number))
                return

    def _arrive_and_schedule(self, number: int) -> None:
        self._schedule_next()
        self._arrive(number)

    def _arrive(self, number: int) -> None:
        now = self._cluster.now
        request, slo = self._scenario.workload.requests[number], self._scenario.slos[number]
        live = self._recorder.arrived(number, now, request.num_prompt_tokens, slo, request.tenant)
        spec = self._spec_of(number, request, slo)
        self._live[spec.request_id] = live
        try:
            self._cluster.tell(RequestArrived(spec))
        except TandemError as error:
            self._fail(spec.request_id, error, now)

    def _follow(self, number: int) -> None:
        """An answer is complete, or will never be: the next turn comes after its pause."""
        follower = self._follow_ups.take(number)
        if follower is not None:
            pause_s = self._scenario.workload.requests[follower].after_previous_s
            assert pause_s is not None
            delay_s = pause_s / self._scenario.rate_scale
            self._cluster.at(delay_s, partial(self._arrive, follower))

    def _fail(self, request_id: RequestId, error: TandemError, now: float) -> None:
        live = self._live.pop(request_id)
        name = type(error).__name__
        self.failure_by_error.setdefault(name, Failure(str(error))).count += 1
        self._recorder.ended(live, now, Status.FAILED)
        self._follow(live.number)

    def _spec_of(self, number: int, request: TraceRequest, slo: RequestSlo) -> RequestSpec:
        is_cached = self._scenario.prefix_caching
        num_output_tokens = min(request.num_output_tokens, self._scenario.max_tokens)
        are_lengths_allowed = self._scenario.are_lengths_allowed
        return RequestSpec(
            request_id=RequestId(str(number)),
            prompt_token_ids=self._prompts.of(number, request),
            # The engine knows by the seed whose answer it counts.
            sampling=SamplingParams(temperature=0.0, seed=number),
            stop=StopParams(
                num_output_tokens if are_lengths_allowed else self._scenario.max_tokens
            ),
            num_choices=1,
            tenant=request.tenant,
            session=request.session,
            request_class=slo.request_class,
            # Whoever names the whole answer alone does not care when tokens come before its end.
            ttft_s=min(slo.ttft_s, slo.jct_s, _NO_GOAL_S),
            tpot_s=min(slo.tpot_s, slo.jct_s, _NO_GOAL_S),
            jct_s=slo.jct_s,
            tbt_s=slo.tbt_s,
            deadline_s=None,
            # None: the router hashes the prompt's blocks itself.
            prefix=None if is_cached else _NO_PREFIX,
            known_output_tokens=num_output_tokens,
        )

    # --- what they hear: an `Audience` ----------------------------------------------------------

    def tokens(self, emitted: EmitTokens, now: float, gaps_s: "array[float]") -> None:
        """See `Audience`."""
        self._live[emitted.request_id].emit(now, len(emitted.tokens.token_ids), gaps_s)

    def finished(self, emitted: EmitFinished, now: float) -> None:
        """See `Audience`."""
        live = self._live.pop(emitted.request_id)
        live.num_preemptions = emitted.timings.num_preemptions
        live.num_swaps = emitted.timings.num_swaps
        live.num_cached_tokens = emitted.num_cached_tokens
        self._note_phases(emitted.request_id, live)
        self._recorder.ended(live, now)
        self._follow(live.number)

    def _note_phases(self, request_id: RequestId, live: LiveRequest) -> None:
        """Where the time of its answer went, by the router's own record."""
        record = self._cluster.router.state.ended.get(request_id)
        if record is None:
            return
        for entry in record.answers[0].timeline.entries:
            if entry.phase not in TERMINAL:
                # What lies in a worker's own queue still waits.
                begin_s = entry.at_s if entry.started_at_s is None else entry.started_at_s
                live.enter(entry.phase, begin_s, entry.worker_id)

    def failed(self, emitted: EmitFailed, now: float) -> None:
        """See `Audience`."""
        self._fail(emitted.request_id, emitted.error, now)

    def planned(self, worker: SimulatedWorker, now: float) -> None:
        """See `Audience`."""
        pool, load, engine = worker.core.pool, worker.load, worker.engine
        assert isinstance(engine, CountingEngine)
        num_written_tokens = engine.num_written_tokens
        if isinstance(worker.core, DecodeCore):
            num_written_tokens += worker.core.held.num_kv_tokens
        num_written = num_written_tokens / worker.hello.block_size
        num_allocated = pool.num_blocks - pool.num_free_blocks
        if self._scenario.prefix_caching:
            # The engine counts what sequences share once for each of them.
            num_shared = pool.num_holds - num_allocated - pool.num_lent_blocks
            num_written = min(max(0.0, num_written - num_shared), num_allocated)
        sample = WorkerSample(num_allocated, num_written, load.num_running, load.num_waiting)
        self._recorder.sampled(worker.hello.worker_id, now, sample)
        state = self._cluster.router.state
        waiting = len(state.prompt_queue), state.num_waiting_answers
        if waiting != self._num_waiting:
            self._num_waiting = waiting
            self._recorder.queued(now, *waiting)

    def stepped(self, worker: SimulatedWorker, run: StepRun) -> None:
        """See `Audience`."""
        num_steps, num_decode, num_prompt_tokens = run.num_steps, run.num_counted, 0
        if run.plan.chunks:
            shape = shape_of(run.plan.chunks)
            num_decode += shape.num_decode
            num_prompt_tokens = shape.num_prompt_tokens
        now = self._cluster.now
        iteration = Iteration(run.planned_at_s, now, num_decode, num_prompt_tokens, num_steps)
        # What is written meanwhile, in the mean over the time that it takes.
        num_tokens = run.num_counted * (num_steps + 1) / 2
        if run.num_counted:
            num_tokens += num_prompt_tokens  # other engines have written what they compute
        num_blocks = num_tokens / worker.hello.block_size
        self._recorder.iterated(worker.hello.worker_id, iteration, num_blocks)


def router_settings(scenario: Scenario) -> RouterSettings:
    """The router's own, but that it refuses nobody and gives nobody up."""
    return RouterSettings(
        max_prompt_queue=max(1, len(scenario.workload.requests)),
        max_retries_per_task=100,
    )


def worker_spec(role: str, scenario: Scenario, policy: Policy) -> WorkerSpec:
    """A worker of the scenario's hardware as the policy wants it."""
    hardware = scenario.hardware
    limits = hardware.limits
    block_size = hardware.kv.block_size
    block_bytes = hardware.kv.bytes_per_token * block_size
    # What always gives its KV up needs no place for it.
    keeps_kv = role != "prefill" and policy.preemption is not Preemption.RECOMPUTE
    return WorkerSpec(
        role=role,
        num_blocks=hardware.num_kv_blocks,
        block_size=block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        growth_reserve=policy.growth_reserve,
        victims=policy.victims,
        is_preempting_eagerly=policy.is_preempting_eagerly,
        parked_yields=policy.parked_yields,
        is_growing_ahead=policy.is_growing_ahead,
        outgrown_wait_in_line=policy.outgrown_wait_in_line,
        num_swap_blocks=scenario.swap_bytes // block_bytes if keeps_kv else 0,
        preemption=policy.preemption,
        swap_bytes_per_s=hardware.swap_model().out.bytes_per_s,
        prefix_caching=scenario.prefix_caching,
        kv_overlap=scenario.kv_overlap,
        max_untold_tokens=scenario.max_untold_tokens,
        batching=policy.batching_rule(limits.max_num_batched_tokens, limits.max_num_seqs),
        block_bytes=block_bytes,
        policy=policy.name,
    )
