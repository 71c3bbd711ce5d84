"""A runner without a model: the next token is a hash of the history. For tests of processes.

It imports no torch. Given KV memory, it stamps every computed token into its block and refuses to
sample where a stamp is missing: a lost, swapped or late block shows as FakeKvMismatch.
"""

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.runner import (
    BlockTableTooShort,
    InvalidChunk,
    InvalidSequence,
    SlotTaken,
    UnknownSlot,
)
from scheduling.sampling import PromptLogprobs, TokenLogprobs
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan, StepResult

_MASK = (1 << 64) - 1
_EMPTY_HASH = 0x243F6A8885A308D3
_STAMP = struct.Struct("<Q")


class FakeKvMismatch(RuntimeError):
    """The KV of a token is not what this history would have written."""

    def __init__(self, slot: int, position: int, block_id: int) -> None:
        super().__init__(
            f"slot {slot}: block {block_id} lacks the KV of position {position}; "
            "look at the transfer or at the block table"
        )
        self.slot, self.position, self.block_id = slot, position, block_id


def history_hashes(token_ids: Iterable[int]) -> list[int]:
    """A 64-bit hash of each prefix of the history, the shortest first."""
    state, hashes = _EMPTY_HASH, []
    for token in token_ids:
        state = _extended(state, token)
        hashes.append(state)
    return hashes


def _extended(state: int, token: int) -> int:
    state = (state ^ (token + 1)) * 0x9E3779B97F4A7C15 & _MASK
    return state ^ (state >> 29)


def fake_next_token(token_ids: Iterable[int], vocab_size: int, first_token_id: int = 0) -> int:
    """The token that `FakeRunner` samples after this history, in [first_token_id, vocab_size)."""
    return first_token_id + (history_hashes(token_ids)[-1] >> 20) % (vocab_size - first_token_id)


@dataclass(slots=True)
class _FakeSequence:
    token_ids: list[int]
    block_table: list[int]
    num_logprobs: int | None
    # Prompt tokens with logprobs, 0 where none are wanted.
    num_scored_tokens: int
    # Hash of each prefix of token_ids.
    hashes: list[int] = field(default_factory=list)


class FakeRunner:
    """An implementation of `Runner`. Sampling parameters other than logprobs are ignored."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        max_num_seqs: int,
        *,
        first_token_id: int = 0,
        kv_bytes: memoryview | None = None,
        block_bytes: int = 0,
        before_step: Callable[[StepPlan], None] | None = None,
    ) -> None:
        """`kv_bytes` is a pool of blocks of `block_bytes`, at least 8 bytes per token of a block.

        `before_step` runs on the engine's thread before each step; a test may wait in it.
        Ids below `first_token_id` (such as the end of text) are never sampled.
        """
        if kv_bytes is not None and block_bytes < _STAMP.size * block_size:
            raise ValueError(f"block_bytes must be at least {_STAMP.size * block_size}")
        self.steps: list[StepPlan] = []
        self._vocab_size, self._first_token_id = vocab_size, first_token_id
        self._block_size, self._max_num_seqs = block_size, max_num_seqs
        self._kv_bytes, self._block_bytes = kv_bytes, block_bytes
        self._before_step = before_step
        self._sequences: dict[int, _FakeSequence] = {}

    @property
    def live_slots(self) -> tuple[int, ...]:
        return tuple(sorted(self._sequences))

    def add(self, start: SequenceStart) -> None:
        """Raises: SlotTaken, InvalidSequence."""
        if start.slot in self._sequences or not 0 <= start.slot < self._max_num_seqs:
            raise SlotTaken(start.slot, self._max_num_seqs)
        if max(start.token_ids, default=0) >= self._vocab_size:
            raise InvalidSequence(start.slot, f"a token id is not below {self._vocab_size}")
        self._sequences[start.slot] = _FakeSequence(
            list(start.token_ids),
            list(start.block_table),
            start.sampling.num_logprobs,
            0 if start.sampling.num_prompt_logprobs is None else start.num_prompt_tokens,
            history_hashes(start.token_ids),
        )

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """Raises: UnknownSlot."""
        self._get(slot).block_table.extend(block_ids)

    def replace_blocks(self, slot: int, first_index: int, block_ids: Sequence[int]) -> None:
        """Raises: UnknownSlot, InvalidSequence."""
        table = self._get(slot).block_table
        end = first_index + len(block_ids)
        if not 0 <= first_index <= end <= len(table):
            raise InvalidSequence(slot, f"has {len(table)} blocks, none at [{first_index}, {end})")
        table[first_index:end] = block_ids

    def remove(self, slot: int) -> None:
        """Raises: UnknownSlot."""
        self._get(slot)
        del self._sequences[slot]

    def step(self, plan: StepPlan) -> StepResult:
        """Raises: UnknownSlot, InvalidChunk, BlockTableTooShort, FakeKvMismatch."""
        if self._before_step is not None:
            self._before_step(plan)
        for chunk in plan.chunks:
            self._check(chunk)
        for chunk in plan.chunks:
            self._stamp(chunk)
        self.steps.append(plan)
        sampling = tuple(chunk.slot for chunk in plan.chunks if chunk.samples)
        for slot in sampling:
            self._verify_stamps(slot)
        token_ids = tuple(self._sample(slot) for slot in sampling)
        wanted = [self._sequences[slot].num_logprobs for slot in sampling]
        logprobs = tuple(
            None if count is None else TokenLogprobs(0.0, ((token, 0.0),)[:count])
            for count, token in zip(wanted, token_ids, strict=True)
        )
        scored = tuple(piece for chunk in plan.chunks for piece in self._score(chunk))
        return StepResult(sampling, token_ids, logprobs if any(logprobs) else (), scored)

    def _get(self, slot: int) -> _FakeSequence:
        found = self._sequences.get(slot)
        if found is None:
            raise UnknownSlot(slot)
        return found

    def _check(self, chunk: ScheduledChunk) -> None:
        sequence = self._get(chunk.slot)
        end, length = chunk.start + chunk.num_tokens, len(sequence.token_ids)
        if chunk.start < 0 or chunk.num_tokens < 1 or end > length:
            raise InvalidChunk(chunk, f"the history has {length} tokens; stay inside it")
        if chunk.samples and end != length:
            raise InvalidChunk(chunk, f"samples, but the history ends at {length}; end there")
        held = len(sequence.block_table) * self._block_size
        if end > held:
            raise BlockTableTooShort(chunk.slot, end, held)

    def _sample(self, slot: int) -> int:
        sequence = self._sequences[slot]
        span = self._vocab_size - self._first_token_id
        token = self._first_token_id + (sequence.hashes[-1] >> 20) % span
        sequence.token_ids.append(token)
        sequence.hashes.append(_extended(sequence.hashes[-1], token))
        return token

    def _score(self, chunk: ScheduledChunk) -> Iterator[tuple[int, PromptLogprobs]]:
        """Each prompt token that follows one of the chunk's has a logprob of minus its position."""
        first = chunk.start + 1
        end = min(first + chunk.num_tokens, self._sequences[chunk.slot].num_scored_tokens)
        if first < end:
            logprobs = array("f", (-position for position in range(first, end)))
            yield chunk.slot, PromptLogprobs(first, logprobs, array("I"), array("f"))

    def _stamp_offset(self, sequence: _FakeSequence, position: int) -> int:
        block = sequence.block_table[position // self._block_size]
        per_token = self._block_bytes // self._block_size
        return block * self._block_bytes + position % self._block_size * per_token

    def _stamp(self, chunk: ScheduledChunk) -> None:
        if self._kv_bytes is None:
            return
        sequence = self._sequences[chunk.slot]
        for position in range(chunk.start, chunk.start + chunk.num_tokens):
            offset = self._stamp_offset(sequence, position)
            _STAMP.pack_into(self._kv_bytes, offset, sequence.hashes[position])

    def _verify_stamps(self, slot: int) -> None:
        if self._kv_bytes is None:
            return
        sequence = self._sequences[slot]
        for position, expected in enumerate(sequence.hashes):
            offset = self._stamp_offset(sequence, position)
            if _STAMP.unpack_from(self._kv_bytes, offset)[0] != expected:
                block = sequence.block_table[position // self._block_size]
                raise FakeKvMismatch(slot, position, block)
