"""What is known of a run once it is over; `simulator/metrics/summary.py` puts it into words."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduling.batch_time_online import PassTimeError
from scheduling.length_calibration import Calibration
from simulator.metrics.distribution import Distribution
from simulator.metrics.role_tally import RoleTally
from simulator.metrics.time_bins import Series
from simulator.metrics.trace_log import TraceLog


@dataclass(slots=True)
class Attainment:
    """How many of some requests met their goals."""

    num_requests: int = 0
    num_finished: int = 0
    num_attained: int = 0
    num_attained_ttft: int = 0
    num_attained_gaps: int = 0
    num_attained_jct: int = 0

    def share(self, num_attained: int) -> float:
        """Of all requests, those that failed or never ended as well."""
        return num_attained / self.num_requests if self.num_requests else 0.0


@dataclass(slots=True)
class RequestTally:
    """Sums over the requests that are counted; latencies are of finished ones, in seconds."""

    all: Attainment = field(default_factory=Attainment)
    by_class: dict[str, Attainment] = field(default_factory=dict)
    num_failed: int = 0
    num_cancelled: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_swaps: int = 0
    first_arrival_s: float | None = None
    last_arrival_s: float = 0.0
    last_end_s: float = 0.0
    ttft: Distribution = field(default_factory=Distribution)
    tbt: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    jct: Distribution = field(default_factory=Distribution)
    # Of finished requests, summed.
    seconds_by_phase: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of one policy."""

    # What is counted: requests that arrive from here on, and what workers hold from here on.
    measured_from_s: float
    end_s: float
    requests: RequestTally
    # In the order in which the roles appeared.
    roles: tuple[RoleTally, ...]
    prompt_queue: Series
    generation_queue: Series
    # Mean tokens of the iterations that began in each bin; nan where none did.
    iteration_tokens: Series
    kvc_allocated_share: Series
    kvc_written_share: Series
    trace: TraceLog | None = None
    # Of the latest answers, by the router.
    length_calibration: Calibration = Calibration()  # noqa: RUF009 - frozen
    # Of the worker of each role whose model of its passes is furthest off, where there are models.
    pass_time_error_by_role: Mapping[str, PassTimeError] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """From when measuring began, or the first counted arrival, to the last counted end."""
        first_s = self.requests.first_arrival_s
        begin_s = self.measured_from_s if self.measured_from_s or first_s is None else first_s
        return max(0.0, self.requests.last_end_s - begin_s)

    @property
    def num_gpus(self) -> int:
        return sum(role.num_gpus for role in self.roles)
