"""Timing by a calibrated model of the hardware."""

from dataclasses import dataclass

from scheduling.batch_time import BatchTimeModel, SwapTimeModel, TransferTimeModel, shape_of
from scheduling.messages import WorkerHello
from scheduling.step import StepPlan
from scheduling.worker_events import Push, SwapIn, SwapOut


@dataclass(frozen=True, slots=True)
class ModelTiming:
    """Implements `Timing`; nothing in it is random."""

    batch: BatchTimeModel
    transfer: TransferTimeModel
    swap: SwapTimeModel
    block_bytes: int
    # One way, a frame between router and worker.
    link_latency_s: float = 0.0002
    # One script of the ledger: there and back.
    ledger_latency_s: float = 0.0002

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

    def step_s(self, worker: WorkerHello, plan: StepPlan) -> float:
        """See `Timing`."""
        return self.batch.seconds(shape_of(plan.chunks))

    def swap_s(self, worker: WorkerHello, swap: SwapOut | SwapIn) -> float:
        """See `Timing`: the engine waits for the copy."""
        way = self.swap.out if isinstance(swap, SwapOut) else self.swap.back
        return way.seconds(len(swap.block_ids) * self.block_bytes)
