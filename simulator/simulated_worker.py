"""One simulated worker: the product's core over an engine that computes nothing."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from decode_worker.core import DecodeCore
from prefill_worker.core import PrefillCore
from scheduling.ids import BlockId, TaskId
from scheduling.messages import WorkerHello, WorkerLoad
from scheduling.prefix_index import PrefixJournal
from scheduling.sampling import StopParams
from scheduling.step import SequenceStart, StepPlan
from scheduling.worker_events import (
    AwaitKv,
    KvSwapped,
    SampledOutput,
    SessionId,
    SwapIn,
    SwapOut,
    WorkerEvent,
)
from simulator.step_log import StepLog, StepRun
from simulator.timing import StepTimes


class SimulatedEngine(Protocol):
    """Sequences in slots, without a model."""

    @property
    def num_sequences(self) -> int: ...

    def load(self, start: SequenceStart, stop: StopParams) -> None: ...

    def extend(self, slot: int, block_ids: Iterable[BlockId]) -> None: ...

    def replace(self, slot: int, first_index: int, block_ids: Iterable[BlockId]) -> None: ...

    def drop(self, slot: int) -> None: ...

    def num_steps_until_end(self, plan: StepPlan) -> int:
        """Steps until one of the counted sequences ends, or all that are planned."""
        ...

    def compute(self, plan: StepPlan, num_steps: int) -> tuple[SampledOutput, ...]:
        """Counted sequences that end with the last of the steps, and what sampling chunks give."""
        ...

    def receive(self, source: Any, pairs: Iterable[tuple[BlockId, BlockId]]) -> None:
        """Take over the KV of blocks of another engine of the same kind."""
        ...

    def swap(self, action: SwapOut | SwapIn) -> None: ...


@dataclass(slots=True)
class SimulatedWorker:
    """One life of a worker."""

    hello: WorkerHello
    core: PrefillCore | DecodeCore
    engine: SimulatedEngine
    session_id: SessionId
    is_alive: bool = True
    # What it computes; None while it is idle.
    run: StepRun | None = None
    # Takes no new tasks.
    is_draining: bool = False
    # What arrives during an iteration is looked at after it, as on the engine thread.
    inbox: deque[WorkerEvent] = field(default_factory=deque)
    log: StepLog = field(default_factory=StepLog)
    # Of answers that are only counted: tokens on their way, and after which step the last one came.
    told: dict[TaskId, tuple[int, int]] = field(default_factory=dict)
    # How many steps had ended by some instant.
    num_steps_by: tuple[float, int] = (-1.0, 0)
    # As of the latest look, and whether nothing has happened since.
    load: WorkerLoad = field(init=False)
    is_load_new: bool = False
    # What the router knows, or will know by the latest frame; None before the first.
    told_load: WorkerLoad | None = None
    expected_generation: dict[int, int] = field(default_factory=dict)
    arrived_generation: dict[int, int] = field(default_factory=dict)
    awaited: dict[TaskId, AwaitKv] = field(default_factory=dict)
    # Copies to and from host memory that the next iteration waits for.
    swap_s: float = 0.0
    # Goes with the next frame.
    untold_prefixes: PrefixJournal = field(default_factory=PrefixJournal)

    def __post_init__(self) -> None:
        self.load = self.core.load

    def take_wait_s(self, times: StepTimes) -> float:
        """How long the next iteration waits for copies.

        A worker that moves KV by itself does so ahead of need (FastServe): beside that iteration,
        which is longer only where the copies are.
        """
        wait_s, self.swap_s = self.swap_s, 0.0
        if wait_s and self.hello.max_task_blocks:
            return max(0.0, wait_s - times.end_s(1))
        return wait_s

    def swap(self, action: SwapOut | SwapIn, copy_s: float) -> None:
        """Blocks move to host memory or back; the next iteration waits for it."""
        self.engine.swap(action)
        self.swap_s += copy_s
        is_out = isinstance(action, SwapOut)
        self.core.handle(KvSwapped(len(action.block_ids), copy_s, is_out))
