"""Takes in what happens in a simulated run, in the order in which it happens.

The memory it needs does not grow with the run: requests are summed up when they end, and what
changes over time goes into a fixed number of bins. Times never decrease from call to call, except
that an iteration may be told at its end.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simulator.metrics.live_request import LiveRequest
from simulator.metrics.request_outcome import RequestOutcome, Status
from simulator.metrics.role_tally import EMPTY, Iteration, RoleTally, WorkerSample
from simulator.metrics.run_record import Attainment, RequestTally, RunRecord
from simulator.metrics.time_bins import Series, StepSeries
from simulator.metrics.trace_log import TracedIteration, TracedKv, TracedRequest, TraceLog
from simulator.slo import NO_SLO, RequestSlo

OnOutcome = Callable[[RequestOutcome], None]


@dataclass(slots=True)
class _Worker:
    role: RoleTally
    num_blocks: int
    sample: WorkerSample = EMPTY


class RunRecorder:
    """One for each run.

    Requests that arrive before `warmup_s` are served but not counted. `on_outcome` is told of
    every request that ends, counted or not; nothing else keeps them.
    """

    def __init__(
        self,
        *,
        warmup_s: float = 0.0,
        trace: TraceLog | None = None,
        on_outcome: OnOutcome | None = None,
    ) -> None:
        self.num_arrived = 0
        self.num_ended = 0
        self._warmup_s = warmup_s
        self._trace = trace
        self._on_outcome = on_outcome
        self._tally = RequestTally()
        self._roles: dict[str, RoleTally] = {}
        self._worker_by_id: dict[str, _Worker] = {}
        self._queues = StepSeries(2, warmup_s)

    def worker_added(
        self, worker_id: str, role: str, num_blocks: int, at_s: float = 0.0, num_gpus: int = 1
    ) -> None:
        """A worker is there, with an empty pool. No other has its id."""
        assert worker_id not in self._worker_by_id
        if role not in self._roles:
            self._roles[role] = RoleTally(role, self._warmup_s)
        tally = self._roles[role]
        tally.worker_added(at_s, num_blocks, num_gpus)
        self._worker_by_id[worker_id] = _Worker(tally, num_blocks)

    def worker_removed(self, worker_id: str, at_s: float) -> None:
        """It is gone, with whatever it held."""
        worker = self._worker_by_id.pop(worker_id)
        worker.role.worker_removed(at_s, worker.num_blocks, worker.sample)

    def arrived(
        self,
        number: int,
        at_s: float,
        num_prompt_tokens: int,
        slo: RequestSlo = NO_SLO,
        tenant: str = "default",
    ) -> LiveRequest:
        """A request has come; tell the returned object its tokens and phases."""
        self.num_arrived += 1
        if at_s >= self._warmup_s:
            tally = self._tally
            tally.last_arrival_s = at_s
            if tally.first_arrival_s is None:
                tally.first_arrival_s = at_s
            tally.all.num_requests += 1
            tally.by_class.setdefault(slo.request_class, Attainment()).num_requests += 1
        trace = self._trace
        if trace is not None and not trace.takes_another_request():
            trace = None
        return LiveRequest(number, at_s, num_prompt_tokens, slo, tenant, trace)

    def ended(self, request: LiveRequest, at_s: float, status: Status = Status.FINISHED) -> None:
        """No more tokens will come; not to be told twice of one request."""
        self.num_ended += 1
        outcome = request.outcome(at_s, status)
        if outcome.arrived_at_s >= self._warmup_s:
            self._count(request, outcome)
        if self._trace is not None and request.is_traced:
            self._trace.request(
                TracedRequest(
                    outcome.number,
                    outcome.arrived_at_s,
                    outcome.first_token_at_s,
                    outcome.ended_at_s,
                    outcome.status.value,
                    outcome.num_prompt_tokens,
                    outcome.num_output_tokens,
                )
            )
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    def sampled(self, worker_id: str, at_s: float, sample: WorkerSample) -> None:
        """What a worker holds from now on."""
        worker = self._worker_by_id[worker_id]
        worker.role.sampled(at_s, worker.sample, sample)
        worker.sample = sample
        if self._trace is not None:
            kv = TracedKv(worker_id, at_s, sample.num_allocated_blocks, sample.num_written_blocks)
            self._trace.kv_held(kv)

    def iterated(self, worker_id: str, iteration: Iteration, num_blocks: float = 0.0) -> None:
        """A worker computes, or has computed, this; several iterations wrote `num_blocks` more, in
        the mean of the time, than it held at their beginning."""
        self._worker_by_id[worker_id].role.iterated(iteration, num_blocks)
        if self._trace is not None:
            self._trace.iteration(TracedIteration(worker_id, *iteration))

    def queued(self, at_s: float, num_prompts: int, num_generations: int) -> None:
        """Lengths of the router's PT and GT queue from now on."""
        self._queues.hold(at_s, (num_prompts, num_generations))

    def finish(self, at_s: float) -> RunRecord:
        """The run is over: nothing is left to do, or nobody waits any longer.

        Requests that have not ended count as missed. Tell nothing more.
        """
        self._queues.advance(at_s)
        roles = tuple(self._roles.values())
        for role in roles:
            role.close(at_s)
        held = [role.series() for role in roles]
        capacity = [one.capacity_blocks for one in held]
        return RunRecord(
            measured_from_s=self._warmup_s,
            end_s=at_s,
            requests=self._tally,
            roles=roles,
            prompt_queue=self._queues.series(0),
            generation_queue=self._queues.series(1),
            iteration_tokens=_mean_tokens(roles),
            kvc_allocated_share=_ratio([one.allocated_blocks for one in held], capacity),
            kvc_written_share=_ratio([one.written_blocks for one in held], capacity),
            trace=self._trace,
        )

    def _count(self, request: LiveRequest, outcome: RequestOutcome) -> None:
        tally = self._tally
        tally.last_end_s = max(tally.last_end_s, outcome.ended_at_s)
        tally.num_prompt_tokens += outcome.num_prompt_tokens
        tally.num_output_tokens += outcome.num_output_tokens
        tally.num_cached_tokens += outcome.num_cached_tokens
        tally.num_preemptions += outcome.num_preemptions
        tally.num_swaps += outcome.num_swaps
        tally.num_failed += outcome.status is Status.FAILED
        tally.num_cancelled += outcome.status is Status.CANCELLED
        meets_ttft, meets_gaps = outcome.meets_ttft, outcome.meets_gaps
        meets_jct = outcome.meets_jct
        for attainment in (tally.all, tally.by_class[outcome.slo.request_class]):
            attainment.num_finished += outcome.status is Status.FINISHED
            attainment.num_attained += meets_ttft and meets_gaps and meets_jct
            attainment.num_attained_ttft += meets_ttft
            attainment.num_attained_gaps += meets_gaps
            attainment.num_attained_jct += meets_jct
        if outcome.status is not Status.FINISHED:
            return
        if outcome.ttft_s is not None:
            tally.ttft.add(outcome.ttft_s)
        tally.jct.add(outcome.jct_s)
        if outcome.gaps is not None:
            tally.tpot.add(outcome.gaps.mean)
            request.add_gaps_to(tally.tbt)
        for phase, seconds in request.seconds_by_phase.items():
            tally.seconds_by_phase[phase] = tally.seconds_by_phase.get(phase, 0.0) + seconds


def _ratio(parts: Iterable[Series], wholes: Iterable[Series]) -> Series:
    """Sum over sum in each bin; all series have the same bins."""
    parts, wholes = list(parts), list(wholes)
    if not parts:
        return Series(1.0, ())
    sums = (
        (sum(part), sum(whole))
        for part, whole in zip(
            zip(*(one.values for one in parts), strict=True),
            zip(*(one.values for one in wholes), strict=True),
            strict=True,
        )
    )
    # Differences of floats are summed up there: an empty pool may hold -1e-12 blocks.
    shares = (max(0.0, part / whole) if whole else 0.0 for part, whole in sums)
    return Series(parts[0].width_s, tuple(shares))


def _mean_tokens(roles: Iterable[RoleTally]) -> Series:
    bins = [role.iteration_bins for role in roles]
    if not bins:
        return Series(1.0, ())
    # A role that began to compute late, or stopped early, has narrower bins.
    width_s = max(one.width_s for one in bins)
    for one in bins:
        one.widen(width_s)
    tokens = [sum(values) for values in zip(*(one.columns[0] for one in bins), strict=True)]
    counts = [sum(values) for values in zip(*(one.columns[1] for one in bins), strict=True)]
    while counts and not counts[-1]:
        counts.pop()
    pairs = zip(tokens, counts, strict=False)
    means = (total / count if count else math.nan for total, count in pairs)
    return Series(width_s, tuple(means))
