"""The beginning of a run in full: iterations of workers and phases of requests, up to a bound."""

from dataclasses import dataclass, field
from typing import NamedTuple

DEFAULT_MAX_REQUESTS = 200
DEFAULT_MAX_ITERATIONS = 20_000
# Of one request; more than a preemption for every other of its tokens leaves.
MAX_PHASES = 200


class TracedIteration(NamedTuple):
    """One forward pass of a worker, or several alike."""

    worker_id: str
    begin_s: float
    end_s: float
    num_decode_tokens: int
    num_prompt_tokens: int
    # So many of this kind, one after the other.
    num_steps: int = 1


class TracedPhase(NamedTuple):
    """A stretch of a request's life."""

    number: int
    name: str
    begin_s: float
    end_s: float
    # "" where it is with no worker.
    worker_id: str


class TracedKv(NamedTuple):
    """Blocks of a worker from this instant on."""

    worker_id: str
    at_s: float
    num_allocated_blocks: int
    num_written_blocks: float


class TracedRequest(NamedTuple):
    """A request that has ended."""

    number: int
    arrived_at_s: float
    # None: it never had one.
    first_token_at_s: float | None
    ended_at_s: float
    status: str
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(slots=True)
class TraceLog:
    """Keeps the first requests that arrive, and as many iterations, and drops what comes later."""

    max_requests: int = DEFAULT_MAX_REQUESTS
    max_iterations: int = DEFAULT_MAX_ITERATIONS
    iterations: list[TracedIteration] = field(default_factory=list)
    phases: list[TracedPhase] = field(default_factory=list)
    kv: list[TracedKv] = field(default_factory=list)
    requests: list[TracedRequest] = field(default_factory=list)
    num_dropped_iterations: int = 0
    num_dropped_phases: int = 0
    _num_taken: int = 0

    def takes_another_request(self) -> bool:
        """Whether the request that arrives now is kept; counts it if so."""
        if self._num_taken >= self.max_requests:
            return False
        self._num_taken += 1
        return True

    def iteration(self, iteration: TracedIteration) -> None:
        """Keep it, if there is room."""
        if len(self.iterations) < self.max_iterations:
            self.iterations.append(iteration)
        else:
            self.num_dropped_iterations += 1

    def phase(self, number: int, name: str, begin_s: float, end_s: float, worker_id: str) -> None:
        """A kept request has left a phase."""
        if len(self.phases) < self.max_requests * MAX_PHASES:
            self.phases.append(TracedPhase(number, name, begin_s, end_s, worker_id))
        else:
            self.num_dropped_phases += 1

    def kv_held(self, sample: TracedKv) -> None:
        """Keep it, if there is room; there is one for each iteration or so."""
        if len(self.kv) < self.max_iterations:
            self.kv.append(sample)

    def request(self, request: TracedRequest) -> None:
        """A kept request has ended."""
        self.requests.append(request)
