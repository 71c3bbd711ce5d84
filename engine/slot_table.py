"""The state of live sequences as arrays: a decode batch is built by indexing, not by loops."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.logit_adjustments import AdjustmentTable
from engine.logprobs import NO_LOGPROBS
from engine.runner import (
    BlockTableTooShort,
    InvalidChunk,
    InvalidSequence,
    SlotInFlight,
    SlotTaken,
    UnknownSlot,
)
from engine.sampler import SamplingBatch
from scheduling.step import ScheduledChunk, SequenceStart

_SEED_MASK = (1 << 64) - 1
_FIRST_WIDTH = 256

Int64Array = npt.NDArray[np.int64]


class SlotTable:
    """One row per slot. Token and block columns grow with the longest sequence."""

    def __init__(self, max_num_seqs: int, block_size: int) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        rows = max_num_seqs
        self.max_num_seqs = rows
        self.block_size = block_size
        self.is_live = np.zeros(rows, np.bool_)
        # [slot, position]; beyond num_tokens the content means nothing.
        self.tokens = np.zeros((rows, _FIRST_WIDTH), np.int64)
        self.num_tokens = np.zeros(rows, np.int64)
        self.num_prompt_tokens = np.zeros(rows, np.int64)
        # Behind num_tokens, tokens that are being sampled; any token may stand in their places.
        self.num_ahead = np.zeros(rows, np.int64)
        # [slot, index]; beyond num_blocks the sequence's own first block is repeated.
        self.blocks = np.zeros((rows, max(1, _FIRST_WIDTH // block_size)), np.int64)
        self.num_blocks = np.zeros(rows, np.int64)
        self._temperature = np.zeros(rows, np.float64)
        self._top_k = np.zeros(rows, np.int64)
        self._top_p = np.ones(rows, np.float64)
        self._min_p = np.zeros(rows, np.float64)
        self._seed = np.zeros(rows, np.uint64)
        self._num_logprobs = np.full(rows, NO_LOGPROBS, np.int64)
        self._adjustments = AdjustmentTable(rows)
        # Slots whose prompts want logprobs, and how many alternatives.
        self.num_prompt_logprobs: dict[int, int] = {}

    def add(self, start: SequenceStart) -> None:
        """Raises: SlotTaken, InvalidSequence."""
        slot, length = start.slot, len(start.token_ids)
        if not 0 <= slot < self.max_num_seqs or self.is_live[slot]:
            raise SlotTaken(slot, self.max_num_seqs)
        if not 0 < start.num_prompt_tokens <= length:
            raise InvalidSequence(
                slot, f"{start.num_prompt_tokens} prompt tokens of {length}; give at least one"
            )
        self._widen_tokens(length)
        self.tokens[slot, :length] = start.token_ids
        self.num_tokens[slot] = length
        self.num_prompt_tokens[slot] = start.num_prompt_tokens
        sampling = start.sampling
        self._temperature[slot] = sampling.temperature
        self._top_k[slot] = sampling.top_k
        self._top_p[slot] = sampling.top_p
        self._min_p[slot] = sampling.min_p
        self._seed[slot] = sampling.seed & _SEED_MASK
        wanted = sampling.num_logprobs
        self._num_logprobs[slot] = NO_LOGPROBS if wanted is None else wanted
        self._adjustments.set(slot, sampling)
        if sampling.num_prompt_logprobs is not None:
            self.num_prompt_logprobs[slot] = sampling.num_prompt_logprobs
        self.num_blocks[slot] = 0
        self.is_live[slot] = True
        self.extend_blocks(slot, start.block_table)

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """Raises: UnknownSlot."""
        self.require(slot)
        if not block_ids:
            return
        held = int(self.num_blocks[slot])
        total = held + len(block_ids)
        self._widen_blocks(total)
        if held == 0:
            self.blocks[slot] = block_ids[0]
        self.blocks[slot, held:total] = block_ids
        self.num_blocks[slot] = total

    def replace_blocks(self, slot: int, first_index: int, block_ids: Sequence[int]) -> None:
        """Raises: UnknownSlot, InvalidSequence."""
        self.require(slot)
        end, held = first_index + len(block_ids), int(self.num_blocks[slot])
        if not 0 <= first_index <= end <= held:
            raise InvalidSequence(slot, f"has {held} blocks; [{first_index}, {end}) are not there")
        if first_index == 0 < end:
            self.blocks[slot, held:] = block_ids[0]
        self.blocks[slot, first_index:end] = block_ids

    def remove(self, slot: int) -> None:
        """Raises: UnknownSlot, SlotInFlight."""
        self.require(slot)
        if self.num_ahead[slot]:
            raise SlotInFlight(slot)
        self.is_live[slot] = False
        self._adjustments.forget(slot)
        self.num_prompt_logprobs.pop(slot, None)

    def require(self, slot: int) -> None:
        """Raises: UnknownSlot."""
        if not 0 <= slot < self.max_num_seqs or not self.is_live[slot]:
            raise UnknownSlot(slot)

    def check(self, chunks: Sequence[ScheduledChunk], max_position: int) -> None:
        """Raises: UnknownSlot, InvalidChunk, BlockTableTooShort."""
        seen: set[int] = set()
        lengths = self.num_tokens + self.num_ahead
        for chunk in chunks:
            slot, end = chunk.slot, chunk.start + chunk.num_tokens
            self.require(slot)
            if slot in seen:
                raise InvalidChunk(chunk, "the slot appears twice in one step; plan it once")
            seen.add(slot)
            length = int(lengths[slot])
            if chunk.start < 0 or chunk.num_tokens < 1 or end > length:
                raise InvalidChunk(chunk, f"the history has {length} tokens; stay inside it")
            if chunk.samples and end != length:
                raise InvalidChunk(chunk, f"samples, but the history ends at {length}; end there")
            if end > max_position:
                raise InvalidChunk(chunk, f"the model's context is {max_position}; end it there")
            held = int(self.num_blocks[slot]) * self.block_size
            if end > held:
                raise BlockTableTooShort(slot, end, held)

    def expect(self, slots: Int64Array) -> None:
        """One more token of each is being sampled; `arrived` brings it, or `give_up` forgets it."""
        num_ahead = self.num_ahead[slots] + 1
        self._widen_tokens(int((self.num_tokens[slots] + num_ahead).max()))
        self.num_ahead[slots] = num_ahead

    def arrived(self, slots: Int64Array, token_ids: Int64Array) -> None:
        """The token of each that was expected first; there is room for it."""
        lengths = self.num_tokens[slots]
        self.tokens[slots, lengths] = token_ids
        self.num_tokens[slots] = lengths + 1
        self.num_ahead[slots] -= 1

    def give_up(self, slots: Int64Array) -> None:
        """A token of each that was expected counts for nothing."""
        self.num_ahead[slots] -= 1

    def append(self, slots: Int64Array, token_ids: Int64Array) -> None:
        """Add one token to the history of each slot."""
        lengths = self.num_tokens[slots]
        self._widen_tokens(int(lengths.max()) + 1)
        self.tokens[slots, lengths] = token_ids
        self.num_tokens[slots] = lengths + 1

    def sampling_of(self, slots: Int64Array) -> SamplingBatch:
        """Parameters for drawing the next token of each slot, behind any that is expected."""
        num_output = self.num_tokens[slots] + self.num_ahead[slots] - self.num_prompt_tokens[slots]
        return SamplingBatch(
            temperature=self._temperature[slots],
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=self._min_p[slots],
            seed=self._seed[slots],
            output_index=num_output.astype(np.uint64),
            num_logprobs=self._num_logprobs[slots],
            adjustments=self._adjustments.of(slots, self),
        )

    def _widen_tokens(self, needed: int) -> None:
        rows, width = self.tokens.shape
        if needed > width:
            wider = np.zeros((rows, max(needed, 2 * width)), np.int64)
            wider[:, :width] = self.tokens
            self.tokens = wider

    def _widen_blocks(self, needed: int) -> None:
        width = self.blocks.shape[1]
        if needed > width:
            more = max(needed, 2 * width) - width
            self.blocks = np.concatenate(
                (self.blocks, np.repeat(self.blocks[:, :1], more, axis=1)), axis=1
            )
