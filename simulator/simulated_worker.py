"""One simulated worker: the product's core over an engine and a KV memory that cannot be fooled.

The engine's next token is a function of the tokens before it, and every KV slot remembers which
tokens it was computed from, so that wrong, stale or freed KV is noticed where it is read.
"""

from dataclasses import dataclass, field
from hashlib import blake2b

from decode_worker.core import DecodeCore
from prefill_worker.core import PrefillCore
from scheduling.ids import TaskId
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

VOCAB_SIZE = 1000


def next_token(token_ids: tuple[int, ...]) -> int:
    """The engine: a token that depends on every token before it."""
    digest = blake2b(repr(token_ids).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % VOCAB_SIZE


def answer(prompt: tuple[int, ...], stop: StopParams) -> tuple[int, ...]:
    """What one process running the engine alone would produce."""
    tokens = prompt
    while len(tokens) - len(prompt) < stop.max_tokens:
        tokens = (*tokens, next_token(tokens))
        if tokens[-1] in stop.stop_token_ids:
            break
    return tokens[len(prompt) :]


@dataclass(slots=True)
class SimulatedSequence:
    """One sequence in a worker's engine."""

    start: SequenceStart
    stop: StopParams
    token_ids: list[int]
    blocks: list[int]


@dataclass(slots=True)
class SimulatedWorker:
    """One life of a worker: its core, its engine and its KV memory."""

    hello: WorkerHello
    core: PrefillCore | DecodeCore
    session_id: SessionId
    is_alive: bool = True
    is_stepping: bool = False
    # Takes no new tasks.
    is_draining: bool = False
    # What arrives during an iteration is looked at after it, as on the engine thread.
    inbox: list[WorkerEvent] = field(default_factory=list)
    outputs: tuple[SampledOutput, ...] = ()
    sequence_by_slot: dict[int, SimulatedSequence] = field(default_factory=dict)
    # The tokens whose KV lies in (block, offset); what a wrong transfer would damage.
    kv: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    # The same of host memory.
    swapped_kv: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    num_swapped_blocks: int = 0
    expected_generation: dict[int, int] = field(default_factory=dict)
    arrived_generation: dict[int, int] = field(default_factory=dict)
    awaited: dict[TaskId, AwaitKv] = field(default_factory=dict)
    # Goes with the next frame.
    untold_prefixes: PrefixJournal = field(default_factory=PrefixJournal)
    num_computed_tokens: int = 0

    def compute(self, chunks: tuple[ScheduledChunk, ...]) -> tuple[SampledOutput, ...]:
        """Run one iteration. Raises: KvMismatch."""
        outputs = []
        for chunk in chunks:
            sequence = self.sequence_by_slot[chunk.slot]
            history = tuple(sequence.token_ids)
            for position in range(chunk.start):
                if self.kv.get(self._place(sequence, position)) != history[: position + 1]:
                    where = f"slot {chunk.slot} of {self.hello.worker_id} at {position}"
                    raise KvMismatch(where)
            self.num_computed_tokens += chunk.num_tokens
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                self.kv[self._place(sequence, position)] = history[: position + 1]
            if chunk.samples:
                assert chunk.start + chunk.num_tokens == len(history)
                outputs.append(_sample(chunk.slot, sequence, history))
        return tuple(outputs)

    def swap(self, action: SwapOut | SwapIn) -> None:
        """Copy whole blocks to host memory or back."""
        if isinstance(action, SwapOut):
            source, to, pairs = self.kv, self.swapped_kv, (action.block_ids, action.swap_block_ids)
            self.num_swapped_blocks += len(action.block_ids)
        else:
            source, to, pairs = self.swapped_kv, self.kv, (action.swap_block_ids, action.block_ids)
        for source_id, to_id in zip(*pairs, strict=True):
            for offset in range(self.hello.block_size):
                to[to_id, offset] = source.get((source_id, offset), ())

    def _place(self, sequence: SimulatedSequence, position: int) -> tuple[int, int]:
        block_size = self.hello.block_size
        return sequence.blocks[position // block_size], position % block_size


class KvMismatch(AssertionError):
    """A sequence would have been computed from KV that is not its own."""


def _sample(slot: int, sequence: SimulatedSequence, history: tuple[int, ...]) -> SampledOutput:
    token_id = next_token(history)
    sequence.token_ids.append(token_id)
    num_output = len(sequence.token_ids) - sequence.start.num_prompt_tokens
    reason = None
    if token_id in sequence.stop.stop_token_ids:
        reason = "stop"
    elif num_output >= sequence.stop.max_tokens:
        reason = "length"
    return SampledOutput(slot, token_id, "", finish_reason=reason)
