"""An engine that only counts: each answer ends where the trace says that it did.

Which request a sequence belongs to is read from its sampling seed, which the simulation sets to the
request's number; nothing that decides looks at it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scheduling.ids import BlockId
from scheduling.sampling import StopParams
from scheduling.step import ScheduledChunk, SequenceStart
from scheduling.worker_events import SampledOutput, SwapIn, SwapOut

_TOKEN_ID = 0


@dataclass(slots=True)
class _Sequence:
    num_missing_outputs: int
    # Tokens whose KV is there.
    num_written: int


class CountingEngine:
    """Implements `SimulatedEngine`. `output_lengths[i]` is the answer's length of request i."""

    def __init__(self, output_lengths: Sequence[int]) -> None:
        self._output_lengths = output_lengths
        self._sequence_by_slot: dict[int, _Sequence] = {}
        # Tokens of the loaded sequences whose KV is there.
        self.num_written_tokens = 0

    @property
    def num_sequences(self) -> int:
        """Sequences that are loaded."""
        return len(self._sequence_by_slot)

    def load(self, start: SequenceStart, stop: StopParams) -> None:
        """A sequence enters; what its first chunk does not compute is there already."""
        num_outputs = len(start.token_ids) - start.num_prompt_tokens
        length = min(self._output_lengths[start.sampling.seed], stop.max_tokens)
        self._sequence_by_slot[start.slot] = _Sequence(length - num_outputs, 0)

    def extend(self, slot: int, block_ids: Iterable[BlockId]) -> None:
        """It got more blocks."""

    def drop(self, slot: int) -> None:
        """It leaves."""
        self.num_written_tokens -= self._sequence_by_slot.pop(slot).num_written

    def compute(self, chunks: tuple[ScheduledChunk, ...]) -> tuple[SampledOutput, ...]:
        """Count one iteration."""
        outputs: list[SampledOutput] = []
        sequences = self._sequence_by_slot
        num_written = 0
        for chunk in chunks:
            sequence = sequences[chunk.slot]
            end = chunk.start + chunk.num_tokens
            num_written += end - sequence.num_written
            sequence.num_written = end
            if chunk.samples:
                sequence.num_missing_outputs -= 1
                reason = None if sequence.num_missing_outputs > 0 else "stop"
                outputs.append(SampledOutput(chunk.slot, _TOKEN_ID, "", None, reason))
        self.num_written_tokens += num_written
        return tuple(outputs)

    def receive(self, source: Any, pairs: Iterable[tuple[BlockId, BlockId]]) -> None:
        """Nothing is stored."""

    def swap(self, action: SwapOut | SwapIn) -> None:
        """Nothing is stored."""
