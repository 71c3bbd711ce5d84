"""A runner without a model: the next token is a hash of the history. For tests of processes.

It imports no torch. Given KV memory, it stamps every computed token into its block and refuses to
sample where a stamp is missing: a lost, swapped or late block shows as FakeKvMismatch.
"""

import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.runner import (
    BlockTableTooShort,
    InvalidChunk,
    InvalidSequence,
    ResultAwaited,
    SlotInFlight,
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
    """An implementation of `PipelinedRunner`, on a device that is as late as it may be.

    Sampling parameters other than logprobs are ignored.
    """

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
        before_result: Callable[[StepPlan], None] | None = None,
    ) -> None:
        """`kv_bytes` is a pool of blocks of `block_bytes`, at least 8 bytes per token of a block.

        `before_step` runs on the engine's thread before each step is ordered, `before_result` when
        its result is wanted; a test may wait in them, or raise.
        Ids below `first_token_id` (such as the end of text) are never sampled.
        """
        if kv_bytes is not None and block_bytes < _STAMP.size * block_size:
            raise ValueError(f"block_bytes must be at least {_STAMP.size * block_size}")
        self.steps: list[StepPlan] = []
        self._vocab_size, self._first_token_id = vocab_size, first_token_id
        self._block_size, self._max_num_seqs = block_size, max_num_seqs
        self._kv_bytes, self._block_bytes = kv_bytes, block_bytes
        self._before_step, self._before_result = before_step, before_result
        # Ordered and not computed, the first first.
        self._under_way: deque[FakePass] = deque()
        self._sequences: dict[int, _FakeSequence] = {}

    @property
    def live_slots(self) -> tuple[int, ...]:
        return tuple(sorted(self._sequences))

    @property
    def blocks_under_way(self) -> frozenset[int]:
        """Those that passes which were ordered, and have not ended, write to."""
        written = (stamp for each in self._under_way for stamp in each.written)
        return frozenset(stamp.block_id for stamp in written)

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
        """Raises: UnknownSlot, SlotInFlight."""
        self._get(slot)
        if any(slot in each.num_tokens_before for each in self._under_way):
            raise SlotInFlight(slot)
        del self._sequences[slot]

    def step(self, plan: StepPlan) -> StepResult:
        """Raises: UnknownSlot, InvalidChunk, BlockTableTooShort, FakeKvMismatch."""
        return self.begin(plan).result()

    def begin(self, plan: StepPlan) -> "FakePass":
        """Raises: UnknownSlot, InvalidChunk, BlockTableTooShort, ResultAwaited."""
        if len(self._under_way) == 2:
            raise ResultAwaited
        if self._before_step is not None:
            self._before_step(plan)
        for chunk in plan.chunks:
            self._check(chunk)
        self.steps.append(plan)
        sampling = tuple(chunk.slot for chunk in plan.chunks if chunk.samples)
        lengths = {chunk.slot: len(self._get(chunk.slot).token_ids) for chunk in plan.chunks}
        written = [stamp for chunk in plan.chunks for stamp in self._stamps(chunk)]
        read = [stamp for slot in sampling for stamp in self._stamps_of_history(slot)]
        # On the device, which is all that knows of them.
        token_ids = tuple(self._sample(slot) for slot in sampling)
        wanted = [self._sequences[slot].num_logprobs for slot in sampling]
        logprobs = tuple(
            None if count is None else TokenLogprobs(0.0, ((token, 0.0),)[:count])
            for count, token in zip(wanted, token_ids, strict=True)
        )
        scored = tuple(piece for chunk in plan.chunks for piece in self._score(chunk))
        result = StepResult(sampling, token_ids, logprobs if any(logprobs) else (), scored)
        self._under_way.append(FakePass(self, plan, lengths, written, read, result))
        return self._under_way[-1]

    def compute(self, ended: "FakePass") -> None:
        """The device comes to the end of this pass. Raises: FakeKvMismatch."""
        assert self._under_way[0] is ended, "passes end in order"
        self._under_way.popleft()
        if self._kv_bytes is None:
            return
        for stamp in ended.written:
            _STAMP.pack_into(self._kv_bytes, stamp.offset, stamp.value)
        for stamp in ended.read:
            if _STAMP.unpack_from(self._kv_bytes, stamp.offset)[0] != stamp.value:
                raise FakeKvMismatch(stamp.slot, stamp.position, stamp.block_id)

    def forget(self, ended: "FakePass") -> None:
        """None of its tokens exist, nor what followed them."""
        for slot, length in ended.num_tokens_before.items():
            sequence = self._sequences[slot]
            del sequence.token_ids[length:], sequence.hashes[length:]

    def before_result(self, plan: StepPlan) -> None:
        """What the test wants to happen then."""
        if self._before_result is not None:
            self._before_result(plan)

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

    def _stamps(self, chunk: ScheduledChunk) -> "list[_KvStamp]":
        positions = range(chunk.start, chunk.start + chunk.num_tokens)
        return [] if self._kv_bytes is None else [self._at(chunk.slot, p) for p in positions]

    def _stamps_of_history(self, slot: int) -> "list[_KvStamp]":
        positions = range(len(self._sequences[slot].hashes))
        return [] if self._kv_bytes is None else [self._at(slot, p) for p in positions]

    def _at(self, slot: int, position: int) -> "_KvStamp":
        sequence = self._sequences[slot]
        block = sequence.block_table[position // self._block_size]
        per_token = self._block_bytes // self._block_size
        offset = block * self._block_bytes + position % self._block_size * per_token
        return _KvStamp(slot, position, block, offset, sequence.hashes[position])


@dataclass(frozen=True, slots=True)
class _KvStamp:
    """The KV of a token, where it belongs."""

    slot: int
    position: int
    block_id: int
    offset: int
    value: int


class FakePass:
    """An implementation of `PendingStep`: KV is written and read when the result is wanted."""

    def __init__(
        self,
        runner: FakeRunner,
        plan: StepPlan,
        num_tokens_before: dict[int, int],
        written: list[_KvStamp],
        read: list[_KvStamp],
        result: StepResult,
    ) -> None:
        self._runner = runner
        self._plan = plan
        self.num_tokens_before = num_tokens_before
        self.written, self.read = written, read
        self._result = result
        self._is_over = False

    def result(self) -> StepResult:
        """See `PendingStep.result`. Raises also: FakeKvMismatch, and what the test raises."""
        self._is_over = True
        try:
            self._runner.compute(self)
            self._runner.before_result(self._plan)
        except BaseException:
            self._runner.forget(self)
            raise
        return self._result

    def discard(self) -> None:
        """See `PendingStep.discard`."""
        if self._is_over:
            return
        self._is_over = True
        try:
            self._runner.compute(self)
        finally:
            self._runner.forget(self)
