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
from scheduling.sampling import StopParams
from scheduling.step import ScheduledChunk, SequenceStart
from scheduling.worker_events import AwaitKv, SampledOutput, SessionId, WorkerEvent

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
    expected_generation: dict[int, int] = field(default_factory=dict)
    arrived_generation: dict[int, int] = field(default_factory=dict)
    awaited: dict[TaskId, AwaitKv] = field(default_factory=dict)

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
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                self.kv[self._place(sequence, position)] = history[: position + 1]
            if chunk.samples:
                assert chunk.start + chunk.num_tokens == len(history)
                outputs.append(_sample(chunk.slot, sequence, history))
        return tuple(outputs)

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
