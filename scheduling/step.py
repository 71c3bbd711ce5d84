"""One forward pass, as a value: what a core plans and what the engine answers.

There is no prefill pass and no decode pass: each sequence has a history of tokens and a computed
count that catches up with it. A chunk of one token at the end of the history is a decode step.
"""

from collections.abc import Set

from scheduling.sampling import PromptLogprobs, SamplingParams, TokenLogprobs
from scheduling.value import value


@value
class SequenceStart:
    """A sequence enters the engine under a slot number that no other live sequence has."""

    slot: int
    # Prompt and, after a hand-over or a preemption, the output so far.
    token_ids: tuple[int, ...]
    # token_ids[num_prompt_tokens:] is output; output index i is drawn with random number i.
    num_prompt_tokens: int
    sampling: SamplingParams
    # Blocks in the order of the tokens they hold; more follow by `extend_blocks`.
    block_table: tuple[int, ...]


@value
class ScheduledChunk:
    """Compute tokens [start, start + num_tokens) of the sequence in `slot`."""

    slot: int
    start: int
    num_tokens: int
    # True when the chunk reaches the end of the history: the next token is sampled and appended.
    samples: bool


@value
class CountedDecodes:
    """Sequences that compute one token each, for an engine that only counts tokens."""

    # A view: it is the planner's, and right until the step is over.
    slots: Set[int]
    # Their tokens, summed: those whose KV this step reads, and the ones that it computes.
    num_context_tokens: int
    # Another one where other sequences are in `slots` than before.
    version: int


@value
class StepPlan:
    """One iteration. A slot appears at most once."""

    chunks: tuple[ScheduledChunk, ...]
    # Beside the chunks; None for an engine that computes anything.
    counted: CountedDecodes | None = None
    # So many iterations of the same counted sequences, and of nothing else, may follow one another.
    num_steps: int = 1

    @property
    def num_tokens(self) -> int:
        """The forward size: tokens computed in this iteration."""
        num_counted = 0 if self.counted is None else len(self.counted.slots)
        return num_counted + sum(chunk.num_tokens for chunk in self.chunks)


@value
class StepResult:
    """The sampled tokens, in the order of the sampling chunks of the plan."""

    slots: tuple[int, ...]
    token_ids: tuple[int, ...]
    # One entry a token where any sequence of the step asked for logprobs, else empty.
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    # (slot, logprobs) of the prompt tokens after those computed, where asked for; in order.
    prompt_logprobs: tuple[tuple[int, PromptLogprobs], ...] = ()
