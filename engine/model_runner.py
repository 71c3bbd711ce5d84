"""Runs one step of a plan: from slots and chunks to tensors, through the model, to tokens.

A single token at the end of a history and a prompt chunk are the same thing here; they share one
forward pass. Which chunks run is decided in `scheduling`; stop conditions are not looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, AttentionBatch
from engine.attention.choice import AttentionShape, choose_attention
from engine.host_copies import HostCopies, host_copies_from
from engine.kv_pool import KvPool
from engine.logprobs import PromptScorer
from engine.models.model import Model
from engine.pending_pass import PendingPass, Scored
from engine.runner import InvalidSequence, ResultAwaited
from engine.sampler import draw
from engine.slot_table import Int64Array, SlotTable
from engine.step_pieces import pieces_of
from engine.to_device import to_device
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan, StepResult

# Told the blocks that a pass reads or writes, just before it is ordered.
BeforePass: TypeAlias = Callable[[Int64Array], None]

# Passes without a result: one that runs and one behind it. Attention plans for as many.
_MAX_UNDER_WAY: Final = 2
_NONE: Final[Int64Array] = np.empty(0, np.int64)


class ModelRunner:
    """The engine of one worker, an implementation of `PipelinedRunner`. Not thread-safe."""

    def __init__(
        self,
        model: Model,
        kv_pool: KvPool,
        max_num_seqs: int,
        attention: AttentionBackend | None = None,
        before_pass: BeforePass | None = None,
        host_copies: HostCopies | None = None,
    ) -> None:
        """Without `attention`, the fastest one of this machine.

        Raises: ValueError when pool and model do not fit together; what `choose_attention` does.
        """
        config, layout = model.config, kv_pool.layout
        expected = (config.num_layers, config.num_kv_heads, config.head_dim)
        if expected != (layout.num_layers, layout.num_kv_heads, layout.head_dim):
            raise ValueError(f"{layout} does not fit the model's {expected}; build it from config")
        if kv_pool.device != model.device:
            raise ValueError(f"pool on {kv_pool.device}, model on {model.device}; use one device")
        self.kv_pool = kv_pool
        self.model = model
        self._attention = attention or choose_attention(
            AttentionShape(
                layout, config.num_heads, config.layer_attention, model.device, model.dtype
            )
        )
        self._before_pass = before_pass
        self._slots = SlotTable(max_num_seqs, layout.block_size)
        self._prompt_scorer = PromptScorer(model.logits, config.vocab_size)
        self._host_copies = host_copies or host_copies_from(model.device)
        # The first begun first.
        self._under_way: list[PendingPass] = []

    @property
    def arithmetic(self) -> str:
        """Workers with equal models and equal names compute the same bits for a sequence."""
        return f"{self.model.arithmetic}-{self._attention.arithmetic}"

    def add(self, start: SequenceStart) -> None:
        """Take a sequence in. Raises: SlotTaken, InvalidSequence."""
        vocab_size = self.model.config.vocab_size
        if start.token_ids and not 0 <= min(start.token_ids) <= max(start.token_ids) < vocab_size:
            raise InvalidSequence(start.slot, f"a token id is not in [0, {vocab_size}); check it")
        _check_sampling(start, vocab_size)
        self._check_blocks(start.slot, start.block_table)
        self._slots.add(start)

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """Append to a sequence's block table. Raises: UnknownSlot, InvalidSequence."""
        self._check_blocks(slot, block_ids)
        self._slots.extend_blocks(slot, block_ids)

    def replace_blocks(self, slot: int, first_index: int, block_ids: Sequence[int]) -> None:
        """Put other blocks into a block table. Raises: UnknownSlot, InvalidSequence."""
        self._check_blocks(slot, block_ids)
        self._slots.replace_blocks(slot, first_index, block_ids)

    def remove(self, slot: int) -> None:
        """Forget a sequence; its blocks are the caller's. Raises: UnknownSlot, SlotInFlight."""
        self._slots.remove(slot)

    def step(self, plan: StepPlan) -> StepResult:
        """Compute the chunks; sample and append a token where a chunk asks for it.

        Raises: UnknownSlot, InvalidChunk, BlockTableTooShort, LogitsNotFinite; see `Runner`.
        """
        return self.begin(plan).result() if plan.chunks else StepResult((), ())

    @torch.inference_mode()
    def begin(self, plan: StepPlan) -> PendingPass:
        """Order a step; see `PipelinedRunner.begin`, also for what is raised."""
        if len(self._under_way) == _MAX_UNDER_WAY:
            raise ResultAwaited
        self.check(plan)
        try:
            pending = self._order(plan)
        except BaseException:
            # What was ordered of it may still write into blocks that others get now.
            self._host_copies.settle()
            raise
        self._under_way.append(pending)
        return pending

    def _order(self, plan: StepPlan) -> PendingPass:
        found = Scored()
        scored: list[Tensor] = []
        newest: list[Tensor] = []
        sampling_slots: list[Int64Array] = []
        for inputs, token_ids, hidden in self._forward_pieces(plan):
            self._score_prompts(inputs.prompt_chunks, hidden, found)
            rows = self._on_device(inputs.score_rows)
            scored.append(hidden.index_select(0, rows))
            if self._under_way:
                newest.append(token_ids.index_select(0, rows))
            sampling_slots.append(inputs.sampling_slots)
        slots = np.concatenate(sampling_slots)
        drawn = None
        if len(slots):
            logits = self.model.logits(_joined(scored))
            sampling = self._slots.sampling_of(slots)
            # Histories are known on the host, but for what a pass under way is sampling.
            drawn = draw(logits, sampling, _joined(newest) if newest else None)
        copy = self._host_copies.start(() if drawn is None else drawn.tensors)
        # Non-finite numbers are told with the result: the ranks of a worker make the same
        # exchanges, whatever the numbers are.
        return PendingPass(self._slots, slots, found, drawn, copy, self._under_way.remove)

    def check(self, plan: StepPlan) -> None:
        """Raises: what `step` raises before anything is computed."""
        self._slots.check(plan.chunks, self.model.config.max_position_embeddings)

    @torch.inference_mode()
    def follow(self, plan: StepPlan) -> None:
        """A step at another rank than the first, where nothing is sampled.

        `append` then brings what was. Raises: UnknownSlot, InvalidChunk, BlockTableTooShort.
        """
        self.check(plan)
        scored: list[Tensor] = []
        for inputs, _, hidden in self._forward_pieces(plan):
            for chunk in inputs.prompt_chunks:
                self._prompt_scorer.follow(hidden[chunk.row : chunk.row + chunk.num_tokens])
            scored.append(hidden.index_select(0, self._on_device(inputs.score_rows)))
        rows = torch.cat(scored)
        if rows.shape[0]:
            self.model.logits(rows)

    def append(self, slots: Sequence[int], token_ids: Sequence[int]) -> None:
        """Add a token that the first rank has sampled to each of these histories."""
        self._slots.append(np.array(slots, np.int64), np.array(token_ids, np.int64))

    def _forward_pieces(self, plan: StepPlan) -> "Iterator[tuple[_StepInputs, Tensor, Tensor]]":
        """Each piece with its token ids [num_tokens] and hidden states on the device."""
        for number, chunks in enumerate(pieces_of(plan.chunks, self.model.max_rows)):
            if number:
                # Attention plans for two at a time: for this one where that before the last ran.
                self._host_copies.settle()
            inputs = self._inputs(chunks)
            token_ids = self._token_ids(inputs)
            yield inputs, token_ids, self._forward(inputs, token_ids)

    def _token_ids(self, inputs: "_StepInputs") -> Tensor:
        """From the host, but for those that the pass before is sampling."""
        token_ids = self._on_device(inputs.token_ids)
        if len(inputs.ahead_rows):
            sampled = self._under_way[-1].tokens_of(inputs.ahead_slots)
            token_ids.index_copy_(0, self._on_device(inputs.ahead_rows), sampled)
        return token_ids

    def _forward(self, inputs: "_StepInputs", token_ids: Tensor) -> Tensor:
        """Hidden states [num_tokens or more, hidden_size]; their KV is in the pool."""
        if self._before_pass is not None:
            self._before_pass(inputs.attention.block_tables)
        self._clear_entered_blocks(inputs)
        return self.model.hidden(
            token_ids,
            self._on_device(inputs.positions),
            self._attention.begin(inputs.attention, self.kv_pool),
        )

    def _score_prompts(
        self, chunks: "Sequence[_PromptChunk]", hidden: Tensor, found: Scored
    ) -> None:
        """Add logprobs of the prompt tokens after those of the chunks; waits for the device."""
        for chunk in chunks:
            first, num_tokens = chunk.start + 1, chunk.num_tokens
            token_ids = self._slots.tokens[chunk.slot, first : first + num_tokens]
            pieces = self._prompt_scorer.score(
                hidden[chunk.row : chunk.row + num_tokens],
                self._on_device(token_ids),
                first,
                self._slots.num_prompt_logprobs[chunk.slot],
            )
            if pieces is None:
                found.not_finite.add(chunk.slot)
            else:
                found.prompt_logprobs += [(chunk.slot, piece) for piece in pieces]

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
        prompt_chunks: list[_PromptChunk] = []
        if self._slots.num_prompt_logprobs:
            prompt_chunks = self._prompt_chunks(slots, starts, counts)
        width = -(-int((starts + counts).max()) // block_size)
        ahead_rows = _NONE
        if self._under_way:
            is_ahead = positions >= self._slots.num_tokens[token_slots]
            ahead_rows = np.flatnonzero(is_ahead)
        return _StepInputs(
            token_ids=self._slots.tokens[token_slots, positions],
            positions=positions,
            ahead_rows=ahead_rows,
            ahead_slots=token_slots[ahead_rows],
            entered_blocks=blocks[offsets == 0],
            score_rows=last_rows[is_sampling],
            sampling_slots=columns[is_sampling, 0],
            prompt_chunks=prompt_chunks,
            attention=AttentionBatch(
                starts=starts,
                num_queries=counts,
                block_tables=self._slots.blocks[slots, :width],
                slot_mapping=blocks * block_size + offsets,
            ),
        )

    def _prompt_chunks(
        self, slots: Int64Array, starts: Int64Array, counts: Int64Array
    ) -> "list[_PromptChunk]":
        """Chunks of prompts that want logprobs, without what the next token follows on."""
        found: list[_PromptChunk] = []
        rows = np.cumsum(counts) - counts
        for slot, start, count, row in zip(
            *(array.tolist() for array in (slots, starts, counts, rows)), strict=True
        ):
            # The prompt's last token is followed by output, whose logprob comes with it.
            num_tokens = min(count, int(self._slots.num_prompt_tokens[slot]) - 1 - start)
            if slot in self._slots.num_prompt_logprobs and num_tokens > 0:
                found.append(_PromptChunk(slot, row, start, num_tokens))
        return found

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
        return to_device(array, self.model.device)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _check_sampling(start: SequenceStart, vocab_size: int) -> None:
    """Raises: InvalidSequence for what would break the draw."""
    sampling = start.sampling
    token_ids = [*sampling.end_token_ids, *(token_id for token_id, _ in sampling.logit_bias)]
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        problem = f"an id of logit_bias or stop_token_ids is not in [0, {vocab_size}); check it"
        raise InvalidSequence(start.slot, problem)
    if sampling.min_tokens and len(set(sampling.end_token_ids)) == vocab_size:
        raise InvalidSequence(start.slot, "every token ends the answer; lower min_tokens to 0")


@dataclass(frozen=True, slots=True)
class _PromptChunk:
    """Hidden states [row, row + num_tokens) are those of tokens [start, ...) of a prompt."""

    slot: int
    row: int
    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _StepInputs:
    """A step's chunks, flattened. Shapes in query tokens unless said otherwise."""

    token_ids: Int64Array
    positions: Int64Array
    # [n] rows whose token the pass before is sampling, and their slots.
    ahead_rows: Int64Array
    ahead_slots: Int64Array
    # Blocks in which position 0 of the block is computed in this step.
    entered_blocks: Int64Array
    # [sampling chunks] rows to score, and their slots, in the order of the plan.
    score_rows: Int64Array
    sampling_slots: Int64Array
    # Those whose prompt tokens' logprobs are wanted.
    prompt_chunks: Sequence[_PromptChunk]
    attention: AttentionBatch
