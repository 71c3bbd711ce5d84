"""Runs one step of a plan: from slots and chunks to tensors, through the model, to tokens.

A single token at the end of a history and a prompt chunk are the same thing here; they share one
forward pass. Which chunks run is decided in `scheduling`; stop conditions are not looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, AttentionBatch
from engine.attention.split_kv import SplitKvAttention
from engine.kv_pool import KvPool
from engine.models.decoder import Decoder
from engine.runner import InvalidSequence, LogitsNotFinite
from engine.sampler import sample
from engine.slot_table import Int64Array, SlotTable
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan, StepResult


class ModelRunner:
    """The engine of one worker, an implementation of `Runner`. Not thread-safe."""

    def __init__(
        self,
        model: Decoder,
        kv_pool: KvPool,
        max_num_seqs: int,
        attention: AttentionBackend | None = None,
    ) -> None:
        """Raises: ValueError when pool and model do not fit together; NoCommonRowCount."""
        config, layout = model.config, kv_pool.layout
        expected = (config.num_layers, config.num_kv_heads, config.head_dim)
        if expected != (layout.num_layers, layout.num_kv_heads, layout.head_dim):
            raise ValueError(f"{layout} does not fit the model's {expected}; build it from config")
        if kv_pool.device != model.device:
            raise ValueError(f"pool on {kv_pool.device}, model on {model.device}; use one device")
        self.kv_pool = kv_pool
        self.model = model
        self._attention = attention or SplitKvAttention(layout, config.num_heads, model.device)
        self._slots = SlotTable(max_num_seqs, layout.block_size)

    @property
    def arithmetic(self) -> str:
        """Workers with equal models and equal names compute the same bits for a sequence."""
        return f"{self.model.row_tiles.fingerprint}-{self._attention.arithmetic}"

    def add(self, start: SequenceStart) -> None:
        """Take a sequence in. Raises: SlotTaken, InvalidSequence."""
        vocab_size = self.model.config.vocab_size
        if start.token_ids and not 0 <= min(start.token_ids) <= max(start.token_ids) < vocab_size:
            raise InvalidSequence(start.slot, f"a token id is not in [0, {vocab_size}); check it")
        self._check_blocks(start.slot, start.block_table)
        self._slots.add(start)

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """Append to a sequence's block table. Raises: UnknownSlot, InvalidSequence."""
        self._check_blocks(slot, block_ids)
        self._slots.extend_blocks(slot, block_ids)

    def remove(self, slot: int) -> None:
        """Forget a sequence; its blocks are the caller's. Raises: UnknownSlot."""
        self._slots.remove(slot)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepResult:
        """Compute the chunks; sample and append a token where a chunk asks for it.

        Raises: UnknownSlot, InvalidChunk, BlockTableTooShort, LogitsNotFinite; see `Runner`.
        """
        if not plan.chunks:
            return StepResult((), ())
        self._slots.check(plan.chunks, self.model.config.max_position_embeddings)
        inputs = self._inputs(plan.chunks)
        self._clear_entered_blocks(inputs)
        logits = self.model.forward(
            self._on_device(inputs.token_ids),
            self._on_device(inputs.positions),
            self._attention.begin(inputs.attention, self.kv_pool),
            self._on_device(inputs.score_rows),
        )
        slots = inputs.sampling_slots
        if not len(slots):
            return StepResult((), ())
        sampled = sample(logits, self._slots.sampling_of(slots))
        if not sampled.is_finite.all():
            raise LogitsNotFinite(tuple(slots[~sampled.is_finite].tolist()))
        self._slots.append(slots, sampled.token_ids)
        return StepResult(
            tuple(slots.tolist()), tuple(sampled.token_ids.tolist()), sampled.logprobs
        )

    def _inputs(self, chunks: Sequence[ScheduledChunk]) -> "_StepInputs":
        """The chunks as arrays; those of one token first, as attention wants them."""
        columns = np.array(
            [(chunk.slot, chunk.start, chunk.num_tokens, chunk.samples) for chunk in chunks],
            np.int64,
        )
        order = np.argsort(columns[:, 2] > 1, kind="stable")
        slots, starts, counts, _ = columns[order].T
        ends = np.cumsum(counts)
        token_slots = np.repeat(slots, counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - counts - starts, counts)
        block_size = self._slots.block_size
        blocks = self._slots.blocks[token_slots, positions // block_size]
        offsets = positions % block_size
        # The last row of each chunk, in the order of the plan.
        last_rows = np.empty_like(ends)
        last_rows[order] = ends - 1
        is_sampling = columns[:, 3] == 1
        width = -(-int((starts + counts).max()) // block_size)
        return _StepInputs(
            token_ids=self._slots.tokens[token_slots, positions],
            positions=positions,
            entered_blocks=blocks[offsets == 0],
            score_rows=last_rows[is_sampling],
            sampling_slots=columns[is_sampling, 0],
            attention=AttentionBatch(
                starts=starts,
                num_queries=counts,
                block_tables=self._slots.blocks[slots, :width],
                slot_mapping=blocks * block_size + offsets,
            ),
        )

    def _clear_entered_blocks(self, inputs: "_StepInputs") -> None:
        """Clear each block whose first token is computed now.

        Attention multiplies the slots behind the last token by zero, which must not meet a NaN of
        an earlier owner; and a transfer of the block carries nobody else's data.
        """
        if len(inputs.entered_blocks):
            self.kv_pool.zero_blocks(self._on_device(inputs.entered_blocks))

    def _check_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        num_blocks = self.kv_pool.num_blocks
        if block_ids and not 0 <= min(block_ids) <= max(block_ids) < num_blocks:
            raise InvalidSequence(slot, f"a block id is not in [0, {num_blocks}); check the pool")

    def _on_device(self, array: Int64Array) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)


@dataclass(frozen=True, slots=True)
class _StepInputs:
    """A step's chunks, flattened. Shapes in query tokens unless said otherwise."""

    token_ids: Int64Array
    positions: Int64Array
    # Blocks in which position 0 of the block is computed in this step.
    entered_blocks: Int64Array
    # [sampling chunks] rows to score, and their slots, in the order of the plan.
    score_rows: Int64Array
    sampling_slots: Int64Array
    attention: AttentionBatch
