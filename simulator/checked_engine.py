"""An engine and a KV memory that cannot be fooled, for tests of the cores.

The next token is a function of all tokens before it, and every KV slot remembers which tokens it
was computed from, so that wrong, stale or freed KV is noticed where it is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

from decode_worker.settings import NO_CONTENT
from scheduling.ids import BlockId
from scheduling.sampling import StopParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from scheduling.worker_events import SampledOutput, SwapIn, SwapOut

VOCAB_SIZE = 1000


def next_token(token_ids: tuple[int, ...]) -> int:
    """The engine: a token that depends on every token before it."""
    digest = blake2b(repr(token_ids).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % VOCAB_SIZE


def counted_token(token_ids: tuple[int, ...], stop: StopParams) -> int:
    """The same of an engine that only counts: what ends nothing has no content."""
    token_id = next_token(token_ids)
    return token_id if token_id in stop.stop_token_ids else NO_CONTENT


def answer(
    prompt: tuple[int, ...], stop: StopParams, *, is_counting: bool = False
) -> tuple[int, ...]:
    """What one process running the engine alone would produce."""
    tokens = prompt
    while len(tokens) - len(prompt) < stop.max_tokens:
        token_id = counted_token(tokens, stop) if is_counting else next_token(tokens)
        tokens = (*tokens, token_id)
        if tokens[-1] in stop.stop_token_ids:
            break
    return tokens[len(prompt) :]


@dataclass(slots=True)
class _Sequence:
    """One sequence in the engine."""

    start: SequenceStart
    stop: StopParams
    token_ids: list[int]
    blocks: list[int]

    @property
    def num_missing_outputs(self) -> int:
        """As many may still come."""
        num_output = len(self.token_ids) - self.start.num_prompt_tokens
        return self.stop.max_tokens - num_output


class CheckedEngine:
    """Implements `SimulatedEngine`."""

    def __init__(self, worker_id: str, block_size: int, *, is_counting: bool = False) -> None:
        self._worker_id = worker_id
        self._is_counting = is_counting
        self._block_size = block_size
        self._sequence_by_slot: dict[int, _Sequence] = {}
        # The tokens whose KV lies in (block, offset); what a wrong transfer would damage.
        self._kv: dict[tuple[int, int], tuple[int, ...]] = {}
        # The same of host memory.
        self._swapped_kv: dict[tuple[int, int], tuple[int, ...]] = {}
        self.num_swapped_blocks = 0
        self.num_computed_tokens = 0

    @property
    def num_sequences(self) -> int:
        """Sequences that are loaded."""
        return len(self._sequence_by_slot)

    def load(self, start: SequenceStart, stop: StopParams) -> None:
        """A sequence enters."""
        tokens, blocks = list(start.token_ids), list(start.block_table)
        self._sequence_by_slot[start.slot] = _Sequence(start, stop, tokens, blocks)

    def extend(self, slot: int, block_ids: Iterable[BlockId]) -> None:
        """It got more blocks."""
        self._sequence_by_slot[slot].blocks.extend(block_ids)

    def replace(self, slot: int, first_index: int, block_ids: Iterable[BlockId]) -> None:
        """It got others in their place."""
        table, block_ids = self._sequence_by_slot[slot].blocks, list(block_ids)
        assert first_index + len(block_ids) <= len(table)
        table[first_index : first_index + len(block_ids)] = block_ids

    def drop(self, slot: int) -> None:
        """It leaves."""
        del self._sequence_by_slot[slot]

    def num_steps_until_end(self, plan: StepPlan) -> int:
        """By a look at what the counted sequences will be."""
        assert plan.counted is not None
        num_steps = plan.num_steps
        for slot in plan.counted.slots:
            sequence = self._sequence_by_slot[slot]
            rest = replace(sequence.stop, max_tokens=sequence.num_missing_outputs)
            rest_of_answer = answer(tuple(sequence.token_ids), rest, is_counting=True)
            num_steps = min(num_steps, len(rest_of_answer))
        return num_steps

    def compute(self, plan: StepPlan, num_steps: int) -> tuple[SampledOutput, ...]:
        """Run iterations. Raises: KvMismatch."""
        ended: tuple[SampledOutput, ...] = ()
        for _ in range(num_steps if plan.counted is not None else 0):
            assert not ended, "an answer ended before the last step"
            assert plan.counted is not None
            chunks = [
                ScheduledChunk(slot, len(self._sequence_by_slot[slot].token_ids) - 1, 1, True)
                for slot in plan.counted.slots
            ]
            outputs = self._compute(chunks)
            ended = tuple(each for each in outputs if each.finish_reason is not None)
            assert all(each.token_id == NO_CONTENT for each in outputs if each not in ended)
        return ended + self._compute(plan.chunks)

    def _compute(self, chunks: Iterable[ScheduledChunk]) -> tuple[SampledOutput, ...]:
        outputs = []
        for chunk in chunks:
            sequence = self._sequence_by_slot[chunk.slot]
            history = tuple(sequence.token_ids)
            for position in range(chunk.start):
                if self._kv.get(self._place(sequence, position)) != history[: position + 1]:
                    raise KvMismatch(f"slot {chunk.slot} of {self._worker_id} at {position}")
            self.num_computed_tokens += chunk.num_tokens
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                self._kv[self._place(sequence, position)] = history[: position + 1]
            if chunk.samples:
                assert chunk.start + chunk.num_tokens == len(history)
                outputs.append(_sample(chunk.slot, sequence, history, self._is_counting))
        return tuple(outputs)

    def receive(self, source: "CheckedEngine", pairs: Iterable[tuple[BlockId, BlockId]]) -> None:
        """Copy blocks of another engine, the first of each pair, into blocks of this one."""
        for from_id, to_id in pairs:
            for offset in range(self._block_size):
                self._kv[to_id, offset] = source._kv.get((from_id, offset), ())

    def swap(self, action: SwapOut | SwapIn) -> None:
        """Copy whole blocks to host memory or back."""
        if isinstance(action, SwapOut):
            source, to = self._kv, self._swapped_kv
            pairs = zip(action.block_ids, action.swap_block_ids, strict=True)
            self.num_swapped_blocks += len(action.block_ids)
        else:
            source, to = self._swapped_kv, self._kv
            pairs = zip(action.swap_block_ids, action.block_ids, strict=True)
        for source_id, to_id in pairs:
            for offset in range(self._block_size):
                to[to_id, offset] = source.get((source_id, offset), ())

    def _place(self, sequence: _Sequence, position: int) -> tuple[int, int]:
        return sequence.blocks[position // self._block_size], position % self._block_size


class KvMismatch(AssertionError):
    """A sequence would have been computed from KV that is not its own."""


def _sample(
    slot: int, sequence: _Sequence, history: tuple[int, ...], is_counting: bool
) -> SampledOutput:
    token_id = counted_token(history, sequence.stop) if is_counting else next_token(history)
    sequence.token_ids.append(token_id)
    reason = None
    if token_id in sequence.stop.stop_token_ids:
        reason = "stop"
    elif sequence.num_missing_outputs <= 0:
        reason = "length"
    return SampledOutput(slot, token_id, "", finish_reason=reason)
