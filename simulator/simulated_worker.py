"""One simulated worker: the product's core over an engine that computes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from decode_worker.core import DecodeCore
from prefill_worker.core import PrefillCore
from scheduling.ids import BlockId, TaskId
from scheduling.messages import WorkerHello
from scheduling.prefix_index import PrefixJournal
from scheduling.sampling import StopParams
from scheduling.step import ScheduledChunk, SequenceStart
from scheduling.worker_events import (
    AwaitKv,
    SampledOutput,
    SessionId,
    SwapIn,
    SwapOut,
    WorkerEvent,
)


class SimulatedEngine(Protocol):
    """Sequences in slots, without a model."""

    @property
    def num_sequences(self) -> int: ...

    def load(self, start: SequenceStart, stop: StopParams) -> None: ...

    def extend(self, slot: int, block_ids: Iterable[BlockId]) -> None: ...

    def drop(self, slot: int) -> None: ...

    def compute(self, chunks: tuple[ScheduledChunk, ...]) -> tuple[SampledOutput, ...]:
        """What the sampling chunks of one iteration give, in their order."""
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
    is_stepping: bool = False
    # Takes no new tasks.
    is_draining: bool = False
    # What arrives during an iteration is looked at after it, as on the engine thread.
    inbox: list[WorkerEvent] = field(default_factory=list)
    outputs: tuple[SampledOutput, ...] = ()
    expected_generation: dict[int, int] = field(default_factory=dict)
    arrived_generation: dict[int, int] = field(default_factory=dict)
    awaited: dict[TaskId, AwaitKv] = field(default_factory=dict)
    # Copies to and from host memory that the next iteration waits for.
    swap_s: float = 0.0
    # Goes with the next frame.
    untold_prefixes: PrefixJournal = field(default_factory=PrefixJournal)
