"""An engine that only counts: each answer ends where the trace says that it did.

Which request a sequence belongs to is read from its sampling seed, which the simulation sets to the
request's number; nothing that decides looks at it.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from decode_worker.settings import NO_CONTENT
from scheduling.ids import BlockId
from scheduling.sampling import StopParams
from scheduling.step import CountedDecodes, ScheduledChunk, SequenceStart, StepPlan
from scheduling.worker_events import SampledOutput, SwapIn, SwapOut


@dataclass(slots=True, eq=False)
class _Sequence:
    num_missing_outputs: int
    # Prompt and output so far.
    num_tokens: int
    # Tokens whose KV is there.
    num_written: int = 0
    # Of one that is counted: steps at its beginning, and with which of them it ends. What is above
    # is as it was at the beginning.
    counted_from: int = 0
    ends_at: int = 0


class CountingEngine:
    """Implements `SimulatedEngine`. `output_lengths[i]` is the answer's length of request i."""

    def __init__(self, output_lengths: Sequence[int]) -> None:
        self._output_lengths = output_lengths
        self._sequence_by_slot: dict[int, _Sequence] = {}
        # Tokens of the loaded sequences whose KV is there.
        self.num_written_tokens = 0
        # Those that get a token in each counted step, as of a version of the plan's.
        self._counted: dict[int, _Sequence] = {}
        self._version = 0
        # Counted steps so far.
        self._num_steps = 0
        # (ends_at, number, slot, sequence); it counts where the sequence says the same.
        self._ends: list[tuple[int, int, int, _Sequence]] = []
        self._numbers = count()

    @property
    def num_sequences(self) -> int:
        """Sequences that are loaded."""
        return len(self._sequence_by_slot)

    def load(self, start: SequenceStart, stop: StopParams) -> None:
        """A sequence enters; what its first chunk does not compute is there already."""
        num_outputs = len(start.token_ids) - start.num_prompt_tokens
        length = min(self._output_lengths[start.sampling.seed], stop.max_tokens)
        self._sequence_by_slot[start.slot] = _Sequence(length - num_outputs, len(start.token_ids))

    def extend(self, slot: int, block_ids: Iterable[BlockId]) -> None:
        """It got more blocks."""

    def replace(self, slot: int, first_index: int, block_ids: Iterable[BlockId]) -> None:
        """It got others in their place."""

    def drop(self, slot: int) -> None:
        """It leaves."""
        if slot in self._counted:
            self._count_no_more(slot)
        self.num_written_tokens -= self._sequence_by_slot.pop(slot).num_written

    def num_steps_until_end(self, plan: StepPlan) -> int:
        """Steps until one of the counted sequences ends, or all that are planned."""
        assert plan.counted is not None
        self._follow(plan.counted)
        ends = self._ends
        while ends[0][3].ends_at != ends[0][0]:  # it counts no more
            heapq.heappop(ends)
        return min(plan.num_steps, ends[0][0] - self._num_steps)

    def compute(self, plan: StepPlan, num_steps: int) -> tuple[SampledOutput, ...]:
        """Count iterations."""
        outputs: list[SampledOutput] = []
        if plan.counted is not None:
            self._follow(plan.counted)
            self._num_steps += num_steps
            self.num_written_tokens += num_steps * len(self._counted)
            while self._ends and self._ends[0][0] <= self._num_steps:
                end = heapq.heappop(self._ends)
                if end[3].ends_at == end[0]:
                    outputs.append(SampledOutput(end[2], NO_CONTENT, "", None, "stop"))
        if plan.chunks:
            outputs += self._compute(plan.chunks)
        return tuple(outputs)

    def _follow(self, counted: CountedDecodes) -> None:
        """Count those, and no others, from now on."""
        if counted.version == self._version:
            return
        self._version = counted.version
        for slot in self._counted.keys() - counted.slots:
            self._count_no_more(slot)
        for slot in counted.slots - self._counted.keys():
            sequence = self._counted[slot] = self._sequence_by_slot[slot]
            sequence.counted_from = self._num_steps
            sequence.ends_at = self._num_steps + sequence.num_missing_outputs
            heapq.heappush(self._ends, (sequence.ends_at, next(self._numbers), slot, sequence))
            # All but the newest token's is there.
            self.num_written_tokens += sequence.num_tokens - 1 - sequence.num_written
            sequence.num_written = sequence.num_tokens - 1

    def _count_no_more(self, slot: int) -> None:
        sequence = self._counted.pop(slot)
        num_steps = self._num_steps - sequence.counted_from
        sequence.num_missing_outputs -= num_steps
        sequence.num_tokens += num_steps
        sequence.num_written += num_steps
        sequence.ends_at = 0

    def _compute(self, chunks: Iterable[ScheduledChunk]) -> list[SampledOutput]:
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
                sequence.num_tokens = end + 1
                reason = None if sequence.num_missing_outputs > 0 else "stop"
                outputs.append(SampledOutput(chunk.slot, NO_CONTENT, "", None, reason))
        self.num_written_tokens += num_written
        return outputs

    def receive(self, source: Any, pairs: Iterable[tuple[BlockId, BlockId]]) -> None:
        """Nothing is stored."""

    def swap(self, action: SwapOut | SwapIn) -> None:
        """Nothing is stored."""
