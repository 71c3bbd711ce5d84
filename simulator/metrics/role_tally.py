"""What the workers of one role did and held, summed over them as it happens."""

from dataclasses import dataclass, field
from typing import NamedTuple

from simulator.metrics.distribution import Distribution
from simulator.metrics.time_bins import Series, StepSeries, TimeBins

# Columns of RoleTally._held.
_CAPACITY, _ALLOCATED, _WRITTEN, _RUNNING, _WAITING, _WORKERS = range(6)
# Tokens of iterations are small whole numbers, but there may be very many iterations.
_MAX_EXACT_ITERATIONS = 1 << 18


class WorkerSample(NamedTuple):
    """What a worker holds from one instant until its next sample."""

    # Blocks that some sequence owns; cached ones that count as free are not among them.
    num_allocated_blocks: int
    # Of those, the part that holds KV: tokens over block size.
    num_written_blocks: float
    num_running: int
    num_waiting: int


EMPTY = WorkerSample(0, 0.0, 0, 0)


class Iteration(NamedTuple):
    """One forward pass, or several alike."""

    begin_s: float
    end_s: float
    num_decode_tokens: int
    num_prompt_tokens: int
    # So many of this kind, one after the other, took that time.
    num_steps: int = 1


@dataclass(frozen=True, slots=True)
class RoleSeries:
    """Means per time bin, over all workers of the role."""

    capacity_blocks: Series
    allocated_blocks: Series
    written_blocks: Series
    running: Series
    waiting: Series


@dataclass(slots=True)
class RoleTally:
    """Shares and means leave out what was before measuring began; series show everything."""

    role: str
    measured_from_s: float = 0.0
    num_workers: int = 0
    num_gpus: int = 0
    num_iterations: int = 0
    num_decode_tokens: int = 0
    num_prompt_tokens: int = 0
    busy_s: float = 0.0
    iteration_tokens: Distribution = field(
        default_factory=lambda: Distribution(_MAX_EXACT_ITERATIONS)
    )
    # Tokens and number of the iterations that began in a bin.
    iteration_bins: TimeBins = field(default_factory=lambda: TimeBins(2))
    _held: StepSeries = field(init=False)

    def __post_init__(self) -> None:
        self._held = StepSeries(6, self.measured_from_s)

    def worker_added(self, at_s: float, num_blocks: int, num_gpus: int) -> None:
        """Its pool is there from now on."""
        self.num_workers += 1
        self.num_gpus += num_gpus
        self._held.change(at_s, (num_blocks, 0, 0, 0, 0, 1))

    def worker_removed(self, at_s: float, num_blocks: int, held: WorkerSample) -> None:
        """Its pool, and what it held, are gone; `num_workers` still counts it."""
        self._held.change(at_s, (-num_blocks, *(-one for one in held), -1))

    def sampled(self, at_s: float, before: WorkerSample, now: WorkerSample) -> None:
        """One of the workers holds something else from now on."""
        self._held.change(
            at_s,
            (
                0,
                now.num_allocated_blocks - before.num_allocated_blocks,
                now.num_written_blocks - before.num_written_blocks,
                now.num_running - before.num_running,
                now.num_waiting - before.num_waiting,
            ),
        )

    def iterated(self, iteration: Iteration, num_blocks: float = 0.0) -> None:
        """One of the workers has computed, and written so many blocks more in the mean of the
        time."""
        begin_s, end_s, num_decode_tokens, num_prompt_tokens, num_steps = iteration
        num_tokens = num_decode_tokens + num_prompt_tokens
        self.iteration_bins.put(begin_s, (num_steps * num_tokens, num_steps))
        if num_blocks:
            self._held.add(_WRITTEN, begin_s, end_s, num_blocks)
        if begin_s >= self.measured_from_s:
            self.num_iterations += num_steps
            self.num_decode_tokens += num_steps * num_decode_tokens
            self.num_prompt_tokens += num_steps * num_prompt_tokens
            self.iteration_tokens.add(num_tokens, num_steps)
            self.busy_s += end_s - begin_s

    def close(self, at_s: float) -> None:
        """Nothing more will be told."""
        self._held.advance(at_s)

    @property
    def capacity_block_s(self) -> float:
        return self._held.total(_CAPACITY)

    @property
    def allocated_block_s(self) -> float:
        return self._held.total(_ALLOCATED)

    @property
    def written_block_s(self) -> float:
        return self._held.total(_WRITTEN)

    @property
    def worker_s(self) -> float:
        return self._held.total(_WORKERS)

    @property
    def mean_running(self) -> float:
        return self._held.mean(_RUNNING)

    @property
    def mean_waiting(self) -> float:
        return self._held.mean(_WAITING)

    def series(self) -> RoleSeries:
        """What was held over time."""
        columns = (_CAPACITY, _ALLOCATED, _WRITTEN, _RUNNING, _WAITING)
        return RoleSeries(*(self._held.series(column) for column in columns))
