"""How long things take in a simulated cluster."""

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Protocol

from scheduling.messages import WorkerHello
from scheduling.step import StepPlan
from scheduling.worker_events import Push, SwapIn, SwapOut


class StepTimes(Protocol):
    """When iterations end, in seconds since the first of them began."""

    def end_s(self, num_steps: int) -> float:
        """The end of the last of so many."""
        ...

    def num_steps_begun(self, elapsed_s: float) -> int:
        """Counting the one that is computed then; at least 1."""
        ...

    def each_s(self, num_steps: int) -> Iterable[float]:
        """How long each of the first ones takes."""
        ...


class RandomSteps:
    """Implements `StepTimes`; drawn as far as somebody looks."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ends_s: list[float] = []

    def end_s(self, num_steps: int) -> float:
        """See `StepTimes`."""
        while len(self._ends_s) < num_steps:
            last_s = self._ends_s[-1] if self._ends_s else 0.0
            self._ends_s.append(last_s + self._rng.uniform(0.001, 0.01))
        return self._ends_s[num_steps - 1]

    def num_steps_begun(self, elapsed_s: float) -> int:
        """See `StepTimes`."""
        num_steps = 1
        while self.end_s(num_steps) < elapsed_s:
            num_steps += 1
        return num_steps

    def each_s(self, num_steps: int) -> Iterable[float]:
        """See `StepTimes`."""
        self.end_s(num_steps)
        return (end - begin for begin, end in pairwise((0.0, *self._ends_s[:num_steps])))


class Timing(Protocol):
    """All in seconds of virtual time."""

    def link_s(self) -> float:
        """A frame between router and worker."""
        ...

    def ledger_s(self) -> float:
        """The ledger's answer."""
        ...

    def push_s(self, worker: WorkerHello, push: Push) -> float:
        """Copying blocks from a prefill worker to a decode worker."""
        ...

    def clear_s(self) -> float:
        """Until no sender can write into revoked blocks."""
        ...

    def is_still_mapped(self) -> bool:
        """Whether a copy into the pool of a dead process still succeeds."""
        ...

    @property
    def report_delay_s(self) -> float:
        """How old reports are when they arrive, as far as that is one figure."""
        ...

    def steps(self, worker: WorkerHello, plan: StepPlan) -> StepTimes:
        """The iterations of one plan, one after the other."""
        ...

    def swap_s(self, worker: WorkerHello, swap: SwapOut | SwapIn) -> float:
        """Copying blocks to host memory or back, as far as the engine waits for it."""
        ...


class RandomTiming:
    """Delays drawn at random, so that events meet in many orders: for tests."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def link_s(self) -> float:
        """See `Timing`."""
        return self._rng.uniform(0, 0.003)

    def ledger_s(self) -> float:
        """See `Timing`."""
        return self._rng.uniform(0, 0.002)

    def push_s(self, worker: WorkerHello, push: Push) -> float:
        """See `Timing`."""
        return self._rng.uniform(0, 0.004)

    def clear_s(self) -> float:
        """See `Timing`."""
        return self._rng.uniform(0, 0.002)

    # No one figure.
    report_delay_s = 0.0

    def steps(self, worker: WorkerHello, plan: StepPlan) -> RandomSteps:
        """See `Timing`."""
        return RandomSteps(self._rng)

    def is_still_mapped(self) -> bool:
        """See `Timing`."""
        return self._rng.random() < 0.5

    def swap_s(self, worker: WorkerHello, swap: SwapOut | SwapIn) -> float:
        """See `Timing`."""
        return 0.0
