"""Runs a load, shows how far it is, and keeps what the run was asked and how long it took."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

from runtime.clock import Clock
from scheduling.policy import Policy
from simulator.cluster_spec import ClusterSpec
from simulator.load import Load
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome
from simulator.metrics.summary import Json, RunFacts, RunResult, rounded
from simulator.metrics.trace_log import TraceLog
from simulator.progress import ProgressLine
from simulator.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of many, which may have been given up."""

    result: RunResult
    # It was given up once it was clear that too few requests could meet their goals.
    is_complete: bool
    # Share of the whole workload that met its goals; of a run that was given up, all that could.
    attainment: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something about runs of a policy that whoever looks on should know, once."""

    policy: str
    # Of one kind, the first is told: a search need not say it again at every rate.
    kind: str
    text: str


@dataclass(slots=True)
class Runner:
    """Runs one load again and again; the same calls give the same results."""

    load: Load
    clock: Clock
    # Where notes go, and progress unless that has a stream of its own; None: nowhere.
    stream: IO[str] | None = None
    progress: IO[str] | None = None
    # Wall times of all runs so far.
    wall_times: list[Mapping[str, Json]] = field(default_factory=list)
    # One of each kind.
    notes: list[Note] = field(default_factory=list)

    def run(
        self, policy: Policy, cluster: ClusterSpec, rate_scale: float, *, is_traced: bool = False
    ) -> RunResult:
        """A whole run. With `is_traced`, its beginning is kept in full."""
        return self.trial(policy, cluster, rate_scale, 0.0, is_traced=is_traced).result

    def trial(
        self,
        policy: Policy,
        cluster: ClusterSpec,
        rate_scale: float,
        least_attainment: float,
        *,
        is_traced: bool = False,
    ) -> Trial:
        """A run that is given up when less than this share can still meet its goals."""
        num_requests = len(self.load.workload.requests)
        may_miss = num_requests - math.ceil(least_attainment * num_requests - 1e-9)
        misses = _Misses()
        trace = TraceLog() if is_traced else None
        recorder = RunRecorder(trace=trace, on_outcome=misses.count)
        simulation = Simulation(self.load.scenario(rate_scale), policy, cluster, recorder)
        name = policy.name if rate_scale == 1 else f"{policy.name} x{rate_scale:.4g}"
        line = None
        stream = self.progress or self.stream
        if stream is not None:
            line = ProgressLine(stream, self.clock, f"{name} on {cluster.text}", num_requests)

        def goes_on(now: float) -> bool:
            if line is not None:
                line.update(now, recorder.num_ended)
            misses.are_too_many = misses.num > may_miss
            return not misses.are_too_many

        began_at_s = self.clock.now()
        record = simulation.run(goes_on)
        wall_s = self.clock.now() - began_at_s
        if line is not None:
            line.close(simulation.now, recorder.num_ended)
        result = RunResult(self._facts(policy, cluster, rate_scale), record)
        num_ended = recorder.num_ended
        self._note_wall_time(result, wall_s, simulation.now, num_ended)
        is_complete = not misses.are_too_many
        self._tell_failures(policy.name, simulation)
        if is_complete and num_ended < num_requests:
            num_left = num_requests - num_ended
            text = f"{num_left} requests never ended: this is a defect; report it with the trace"
            self.tell(Note(policy.name, "never ended", text))
        num_met = record.requests.all.num_attained if is_complete else num_requests - misses.num
        return Trial(result, is_complete, num_met / num_requests)

    def _facts(self, policy: Policy, cluster: ClusterSpec, rate_scale: float) -> RunFacts:
        load = self.load
        return RunFacts(
            policy=policy.name,
            trace=load.workload.name,
            cluster=cluster.text,
            hardware=load.hardware.name,
            seed=load.seed,
            slo=load.plan.text,
            slo_source=load.plan.source,
            ttft_goal_s=load.plan.fixed_ttft_s,
            token_goal_s=load.plan.fixed_token_s,
            model=load.hardware.model,
            rate_scale=rate_scale,
            settings=load.settings,
        )

    def _note_wall_time(
        self, result: RunResult, wall_s: float, simulated_s: float, num_ended: int
    ) -> None:
        self.wall_times.append(
            {
                "policy": result.facts.policy,
                "cluster": result.facts.cluster,
                "rate_scale": rounded(result.facts.rate_scale),
                "wall_s": rounded(wall_s),
                "simulated_s": rounded(simulated_s),
                "times_real_time": rounded(simulated_s / wall_s) if wall_s > 0 else None,
                "us_per_request": rounded(1e6 * wall_s / num_ended) if num_ended else None,
                "iterations": sum(role.num_iterations for role in result.record.roles),
            }
        )

    def _tell_failures(self, policy: str, simulation: Simulation) -> None:
        for error, failure in simulation.failure_by_error.items():
            text = f"{failure.count} requests failed with {error}, the first with: "
            self.tell(Note(policy, error, text + failure.first_message))

    def tell(self, note: Note) -> None:
        """Keep it and write it, unless one of its kind was told."""
        if any((one.policy, one.kind) == (note.policy, note.kind) for one in self.notes):
            return
        self.notes.append(note)
        if self.stream is not None:
            self.stream.write(f"note: {note.policy}: {note.text}\n")


@dataclass(slots=True)
class _Misses:
    num: int = 0
    # Somebody looked, and gave up.
    are_too_many: bool = False

    def count(self, outcome: RequestOutcome) -> None:
        self.num += not outcome.meets_slo
