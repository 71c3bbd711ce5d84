"""How long things take in a simulated cluster."""

import random
from typing import Protocol

from scheduling.messages import WorkerHello
from scheduling.step import StepPlan
from scheduling.worker_events import Push, SwapIn, SwapOut


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

    def step_s(self, worker: WorkerHello, plan: StepPlan) -> float:
        """One iteration of an engine."""
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

    def step_s(self, worker: WorkerHello, plan: StepPlan) -> float:
        """See `Timing`."""
        return self._rng.uniform(0.001, 0.01)

    def is_still_mapped(self) -> bool:
        """See `Timing`."""
        return self._rng.random() < 0.5

    def swap_s(self, worker: WorkerHello, swap: SwapOut | SwapIn) -> float:
        """See `Timing`."""
        return 0.0
