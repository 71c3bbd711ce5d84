"""Timing by a calibrated model of the hardware."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scheduling.batch_time import (
    BatchShape,
    BatchTimeModel,
    SwapTimeModel,
    TransferTimeModel,
    shape_of_plan,
)
from scheduling.messages import WorkerHello
from scheduling.step import StepPlan
from scheduling.value import value
from scheduling.worker_events import Push, SwapIn, SwapOut

LINK_LATENCY_S = 0.0002
LEDGER_LATENCY_S = 0.0002


@value
class LinearSteps:
    """Implements `StepTimes`: each takes longer than the one before by as much, as contexts grow.

    So it is by every model that is linear in the context of a batch.
    """

    first_s: float
    more_s: float

    def end_s(self, num_steps: int) -> float:
        """See `StepTimes`."""
        return num_steps * self.first_s + num_steps * (num_steps - 1) / 2 * self.more_s

    def num_steps_begun(self, elapsed_s: float) -> int:
        """See `StepTimes`: the quadratic equation, and a look to both sides for its rounding."""
        num_steps = 1
        if self.more_s > 0:
            half = self.first_s / self.more_s - 0.5
            root = math.sqrt(half * half + 2 * max(0.0, elapsed_s) / self.more_s)
            num_steps = max(1, int(root - half))
        elif self.first_s > 0:
            num_steps = max(1, int(elapsed_s / self.first_s))
        else:
            return 1
        while num_steps > 1 and self.end_s(num_steps - 1) >= elapsed_s:
            num_steps -= 1
        while self.end_s(num_steps) < elapsed_s:
            num_steps += 1
        return num_steps

    def each_s(self, num_steps: int) -> Iterable[float]:
        """See `StepTimes`."""
        if num_steps == 1:
            return (self.first_s,)
        first_s, more_s = self.first_s, self.more_s
        return [first_s + number * more_s for number in range(num_steps)]


@dataclass(frozen=True, slots=True)
class ModelTiming:
    """Implements `Timing`; nothing in it is random."""

    batch: BatchTimeModel
    transfer: TransferTimeModel
    swap: SwapTimeModel
    block_bytes: int
    # One way, a frame between router and worker.
    link_latency_s: float = LINK_LATENCY_S
    # One script of the ledger: there and back.
    ledger_latency_s: float = LEDGER_LATENCY_S

    def link_s(self) -> float:
        """See `Timing`."""
        return self.link_latency_s

    def ledger_s(self) -> float:
        """See `Timing`."""
        return self.ledger_latency_s

    def push_s(self, worker: WorkerHello, push: Push) -> float:
        """See `Timing`."""
        return self.transfer.seconds(len(push.block_ids) * self.block_bytes)

    def clear_s(self) -> float:
        """See `Timing`."""
        return self.link_latency_s

    def is_still_mapped(self) -> bool:
        """See `Timing`."""
        return False

    @property
    def report_delay_s(self) -> float:
        """See `Timing`."""
        return self.link_latency_s

    def steps(self, worker: WorkerHello, plan: StepPlan) -> "LinearSteps":
        """See `Timing`."""
        shape = shape_of_plan(plan)
        first_s = self.batch.seconds(shape)
        if plan.num_steps == 1:
            return LinearSteps(first_s, 0.0)
        longer = BatchShape(shape.num_decode, shape.decode_context + shape.num_decode)
        return LinearSteps(first_s, max(0.0, self.batch.seconds(longer) - first_s))

    def swap_s(self, worker: WorkerHello, swap: SwapOut | SwapIn) -> float:
        """See `Timing`: the engine waits for the copy."""
        way = self.swap.out if isinstance(swap, SwapOut) else self.swap.back
        return way.seconds(len(swap.block_ids) * self.block_bytes)
