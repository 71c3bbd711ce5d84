"""When the running answers of a worker got their tokens, step by step, as far as it matters yet."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduling.step import StepPlan
from scheduling.worker_events import SampledOutput
from simulator.timing import StepTimes

# Steps that are kept at least; no more tokens of an answer may be untold.
MAX_UNTOLD_TOKENS = 1024


@dataclass(slots=True, eq=False)
class StepRun:
    """What a worker computes now: iterations of one plan."""

    plan: StepPlan
    planned_at_s: float
    # Later than planned by what is copied first.
    begin_s: float
    times: StepTimes
    # Fewer than at first, once something happens that the worker is to look at.
    num_steps: int = 1
    # Of an engine that is asked at the beginning.
    outputs: tuple[SampledOutput, ...] = ()
    # Running answers that advance, and are told as sums. The plan has a view of them, which may
    # change once the run is over.
    num_counted: int = field(init=False)

    def __post_init__(self) -> None:
        counted = self.plan.counted
        self.num_counted = 0 if counted is None else len(counted.slots)

    @property
    def end_s(self) -> float:
        """When the last step ends."""
        return self.begin_s + self.times.end_s(self.num_steps)


class StepLog:
    """Steps in which answers advanced, of one worker."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._last_end_s = 0.0
        # From the end of the step before to the end of each; the latest ones.
        self._gaps_s: array[float] = array("d")

    def add(self, end_s: float, lasted_s: float, each_s: Iterable[float], num_steps: int) -> None:
        """So many steps without a pause ended then; `each_s` is how long each took."""
        gaps_s = self._gaps_s
        gaps_s.extend(each_s)
        gaps_s[-num_steps] += end_s - lasted_s - self._last_end_s
        self._last_end_s = end_s
        self.num_steps += num_steps
        if len(gaps_s) > 2 * MAX_UNTOLD_TOKENS:
            del gaps_s[:-MAX_UNTOLD_TOKENS]

    def gaps_s(self, num_tokens: int) -> "array[float]":
        """The gaps between the latest tokens of an answer, of which it got one in each step."""
        return self._gaps_s[len(self._gaps_s) - num_tokens + 1 :]

    def num_steps_by(self, at_s: float) -> int:
        """How many steps had ended by then, which is not long ago."""
        num_steps, end_s = self.num_steps, self._last_end_s
        for gap_s in reversed(self._gaps_s):
            if end_s <= at_s:
                break
            num_steps -= 1
            end_s -= gap_s
        return num_steps
