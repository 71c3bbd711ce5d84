"""A request on its way through a run: it notes its tokens and phases, cheaply.

Token times are the bulk of what happens in a run, so they are 4-byte gaps, looked at once, at the
end. Those of a very long answer are only counted.
"""

from array import array

from simulator.metrics.distribution import Distribution
from simulator.metrics.request_outcome import (
    GapFigures,
    RequestOutcome,
    Status,
    figures_of_distribution,
    figures_of_gaps,
)
from simulator.metrics.trace_log import TraceLog
from simulator.slo import RequestSlo

# 256 KiB; only beyond are percentiles of one request's gaps off by the histogram's error.
MAX_EXACT_GAPS = 65_536


class LiveRequest:
    """Made by RunRecorder.arrived, given back to RunRecorder.ended. Instants never decrease."""

    __slots__ = (
        "_counted",
        "_gaps",
        "_last_token_at_s",
        "_ordered",
        "_phase",
        "_phase_since_s",
        "_phase_worker",
        "_trace",
        "arrived_at_s",
        "first_token_at_s",
        "num_cached_tokens",
        "num_output_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_swaps",
        "number",
        "seconds_by_phase",
        "slo",
        "tenant",
    )

    def __init__(
        self,
        number: int,
        at_s: float,
        num_prompt_tokens: int,
        slo: RequestSlo,
        tenant: str,
        trace: TraceLog | None,
    ) -> None:
        self.number = number
        self.arrived_at_s = at_s
        self.num_prompt_tokens = num_prompt_tokens
        self.slo = slo
        self.tenant = tenant
        self.first_token_at_s: float | None = None
        self.num_output_tokens = 0
        # The caller counts these.
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.num_swaps = 0
        self.seconds_by_phase: dict[str, float] = {}
        self._phase = ""
        self._phase_since_s = at_s
        self._phase_worker = ""
        self._last_token_at_s = at_s
        self._gaps: array[float] = array("f")
        # The same by size, once it has ended.
        self._ordered: list[float] | None = None
        # Of gaps that are no longer kept.
        self._counted: Distribution | None = None
        # None where the request is not in the trace of the run.
        self._trace = trace

    @property
    def is_traced(self) -> bool:
        return self._trace is not None

    def emit(self, at_s: float, num_tokens: int = 1, gaps_s: "array[float] | None" = None) -> None:
        """Tokens reach the client, the last one now, at the gaps that are given.

        Without these they come in one instant, and have gaps of 0.
        """
        # A list: a C loop of its own, where an array makes a number of each element in turn.
        gaps = gaps_s.tolist() if gaps_s else []
        first_at_s = at_s - sum(gaps) if gaps else at_s
        if self.first_token_at_s is None:
            self.first_token_at_s = first_at_s
        else:
            self._gaps.append(max(0.0, first_at_s - self._last_token_at_s))
        self._last_token_at_s = at_s
        self.num_output_tokens += num_tokens
        if gaps:
            self._gaps.fromlist(gaps)
        elif num_tokens > 1:
            self._gaps.extend(array("f", bytes(4 * (num_tokens - 1))))
        if len(self._gaps) > MAX_EXACT_GAPS:
            self._count()

    def enter(self, phase: str, at_s: float, worker_id: str = "") -> None:
        """Leave the phase it is in and begin another (scheduling.lifecycle.Phase)."""
        if self._phase:
            lasted_s = at_s - self._phase_since_s
            before_s = self.seconds_by_phase.get(self._phase, 0.0)
            self.seconds_by_phase[self._phase] = before_s + lasted_s
            if self._trace is not None:
                self._trace.phase(
                    self.number, self._phase, self._phase_since_s, at_s, self._phase_worker
                )
        self._phase, self._phase_since_s, self._phase_worker = phase, at_s, worker_id

    def outcome(self, at_s: float, status: Status) -> RequestOutcome:
        """What became of it, if it ends now; its last phase ends as well."""
        self.enter("", at_s)
        return RequestOutcome(
            number=self.number,
            status=status,
            tenant=self.tenant,
            slo=self.slo,
            arrived_at_s=self.arrived_at_s,
            first_token_at_s=self.first_token_at_s,
            ended_at_s=at_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            num_swaps=self.num_swaps,
            gaps=self._gap_figures(),
        )

    def add_gaps_to(self, every_gap: Distribution) -> None:
        """Count each gap of this request among those of the run."""
        if self._counted is not None:
            every_gap.merge(self._counted)
        every_gap.add_ordered(self._by_size())

    def _gap_figures(self) -> GapFigures | None:
        if self._counted is not None:
            self._count()
            return figures_of_distribution(self._counted)
        return figures_of_gaps(self._by_size()) if self._gaps else None

    def _by_size(self) -> list[float]:
        if self._ordered is None:
            self._ordered = self._gaps.tolist()
            self._ordered.sort()
        return self._ordered

    def _count(self) -> None:
        if self._counted is None:
            self._counted = Distribution(max_exact=0)
        self._counted.add_all(self._gaps)
        self._gaps, self._ordered = array("f"), None
