"""How long one forward pass takes, from what it holds. Pure: shapes in, seconds out.

Chunk sizes, slack, the price of a preemption and the simulator's clock all ask here. The
coefficients come from measurements: `batch_time_fit` finds them, `batch_time_online` keeps them
true while a worker runs. The form was chosen in docs/decisions/batch-time-model.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduling.step import ScheduledChunk, StepPlan
from scheduling.value import value


def chunk_attention(start: int, num_tokens: int) -> int:
    """Token pairs that attention computes for a chunk: each token sees all before it."""
    return num_tokens * start + num_tokens * num_tokens // 2


@value
class BatchShape:
    """What one forward pass computes; all counts are >= 0."""

    # Sequences that compute one token.
    num_decode: int = 0
    # The sum of their contexts, tokens.
    decode_context: int = 0
    # Prompt tokens computed.
    num_prompt_tokens: int = 0
    # Sum of `chunk_attention` over the chunks, token pairs.
    prompt_attention: int = 0

    @property
    def num_tokens(self) -> int:
        """The forward size: rows of every matrix product."""
        return self.num_decode + self.num_prompt_tokens

    def with_chunk(self, start: int, num_tokens: int) -> "BatchShape":
        """The same pass with one more prompt chunk, of tokens [start, start + num_tokens)."""
        return BatchShape(
            self.num_decode,
            self.decode_context,
            self.num_prompt_tokens + num_tokens,
            self.prompt_attention + chunk_attention(start, num_tokens),
        )

    def with_decode(self, context: int) -> "BatchShape":
        """The same pass with one more sequence of that many tokens."""
        return BatchShape(
            self.num_decode + 1,
            self.decode_context + context,
            self.num_prompt_tokens,
            self.prompt_attention,
        )


def shape_of(chunks: Iterable[ScheduledChunk]) -> BatchShape:
    """The shape of a planned pass: one token that samples decodes, anything else is prompt."""
    num_decode = decode_context = num_prompt_tokens = prompt_attention = 0
    for chunk in chunks:
        if chunk.num_tokens == 1 and chunk.samples:
            num_decode += 1
            decode_context += chunk.start + 1
        else:
            num_prompt_tokens += chunk.num_tokens
            prompt_attention += chunk_attention(chunk.start, chunk.num_tokens)
    return BatchShape(num_decode, decode_context, num_prompt_tokens, prompt_attention)


def shape_of_plan(plan: StepPlan, num_steps: int = 1) -> BatchShape:
    """The shape of a planned pass, in the middle of so many."""
    counted = plan.counted
    if counted is None:
        return shape_of(plan.chunks)
    num_decode = len(counted.slots)
    decode_context = counted.num_context_tokens + num_decode * (num_steps - 1) // 2
    if not plan.chunks:
        return BatchShape(num_decode, decode_context)
    shape = shape_of(plan.chunks)
    return BatchShape(
        shape.num_decode + num_decode,
        shape.decode_context + decode_context,
        shape.num_prompt_tokens,
        shape.prompt_attention,
    )


class BatchTimeModel(Protocol):
    """Predicts a forward pass. More of anything never takes less time."""

    def seconds(self, shape: BatchShape) -> float: ...


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Weights are read once for all rows; beyond some rows the products are what takes time.

    The time over `num_tokens` is a convex line with bends, so a prompt chunk beside decode tokens
    costs nothing until the products saturate, and its full price after. Attention is added: over
    the KV of decoding sequences, over the pairs of prompts, and what the two cost each other.
    Every coefficient is >= 0, in seconds; hence the model is monotone in every field of the shape.
    """

    # Of any pass: launches, the host, weights that are read whatever the batch.
    fixed_s: float
    # (tokens, seconds per token beyond them), tokens ascending; the slopes add up.
    bends: tuple[tuple[int, float], ...]
    # Of a pass that holds any prompt token: no captured graph, preparation.
    prompt_fixed_s: float = 0.0
    per_sequence_s: float = 0.0
    per_context_token_s: float = 0.0
    per_prompt_pair_s: float = 0.0
    # Beside a prompt, decode attention runs in a kernel that is made for prompts,
    per_context_token_beside_prompt_s: float = 0.0
    # and its grid has a tile for each sequence and piece of the longest prompt.
    per_sequence_and_prompt_token_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.coefficients()) < 0:
            raise ValueError(f"coefficients of a batch time must be >= 0, got {self}")
        starts = [start for start, _ in self.bends]
        if starts != sorted(set(starts)) or min(starts, default=0) < 0:
            raise ValueError(f"bends must ascend from >= 0 tokens, got {starts}")

    def seconds(self, shape: BatchShape) -> float:
        """The predicted time of the pass; an empty pass takes none."""
        num_decode, num_prompt_tokens = shape.num_decode, shape.num_prompt_tokens
        num_tokens = num_decode + num_prompt_tokens
        if num_tokens == 0:
            return 0.0
        seconds = (
            self.fixed_s
            + self.per_sequence_s * num_decode
            + self.per_context_token_s * shape.decode_context
        )
        if num_prompt_tokens:
            seconds += (
                self.prompt_fixed_s
                + self.per_prompt_pair_s * shape.prompt_attention
                + self.per_context_token_beside_prompt_s * shape.decode_context
                + self.per_sequence_and_prompt_token_s * num_decode * num_prompt_tokens
            )
        for start, slope in self.bends:
            if num_tokens <= start:
                break
            seconds += slope * (num_tokens - start)
        return seconds

    @property
    def bend_starts(self) -> tuple[int, ...]:
        return tuple(start for start, _ in self.bends)

    def coefficients(self) -> tuple[float, ...]:
        """In the order of `features`."""
        return (
            self.fixed_s,
            self.prompt_fixed_s,
            self.per_sequence_s,
            self.per_context_token_s,
            self.per_prompt_pair_s,
            self.per_context_token_beside_prompt_s,
            self.per_sequence_and_prompt_token_s,
            *(slope for _, slope in self.bends),
        )

    @classmethod
    def from_coefficients(
        cls, coefficients: Sequence[float], bend_starts: Sequence[int]
    ) -> "BatchTime":
        """The inverse of `coefficients`."""
        fixed, prompt, sequence, context, pair, beside, crossed, *slopes = coefficients
        return cls(
            fixed_s=fixed,
            bends=tuple(zip(bend_starts, slopes, strict=True)),
            prompt_fixed_s=prompt,
            per_sequence_s=sequence,
            per_context_token_s=context,
            per_prompt_pair_s=pair,
            per_context_token_beside_prompt_s=beside,
            per_sequence_and_prompt_token_s=crossed,
        )


def features(shape: BatchShape, bend_starts: Sequence[int]) -> tuple[float, ...]:
    """What the coefficients of `BatchTime` are multiplied by, for a pass that is not empty."""
    num_tokens = shape.num_tokens
    has_prompt = shape.num_prompt_tokens > 0
    return (
        1.0,
        float(has_prompt),
        float(shape.num_decode),
        float(shape.decode_context),
        float(shape.prompt_attention),
        float(shape.decode_context) if has_prompt else 0.0,
        float(shape.num_decode * shape.num_prompt_tokens),
        *(float(max(0, num_tokens - start)) for start in bend_starts),
    )


@dataclass(frozen=True, slots=True)
class TransferTimeModel:
    """Moving bytes from one worker to another: latency, then a steady rate."""

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.bytes_per_s <= 0:
            raise ValueError(f"a transfer needs latency >= 0 and a rate > 0, got {self}")

    def seconds(self, num_bytes: int) -> float:
        return self.latency_s + num_bytes / self.bytes_per_s if num_bytes else 0.0


@dataclass(frozen=True, slots=True)
class SwapTimeModel:
    """Moving KV to host memory and back; the two ways may differ in speed."""

    out: TransferTimeModel
    back: TransferTimeModel

    def round_trip_seconds(self, num_bytes: int) -> float:
        return self.out.seconds(num_bytes) + self.back.seconds(num_bytes)
