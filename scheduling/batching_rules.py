"""The batching rules of published systems that look at token counts only. Pure.

Decode tokens count as one each. No rule stops a running sequence for good, so a limit holds for
what is added to them: an iteration has at most max(limit, running sequences) tokens. A prompt that
is longer than the limit fits no iteration whole; every rule cuts it and goes on with it first.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from scheduling.batching import IterationChoice, IterationState

_Chunks = tuple[tuple[int, int], ...]


class Filling(StrEnum):
    """How prompts fill what running sequences leave of the target."""

    # In order; the last is cut, so that the target is met exactly.
    CHUNKS = "chunks"
    # In order, whole; the first that does not fit ends it.
    WHOLE = "whole"
    # In order, whole; then the longest of the others that fits, again and again.
    FIT = "fit"


@dataclass(frozen=True, slots=True)
class FillToTarget:
    """One token per running sequence; prompts fill the rest of the target.

    With FIT the first in line is cut if it alone does not fit, so that those that are taken out of
    turn delay nobody. With WHOLE it waits for sequences to end.
    Source: EcoServe, decoupled batching (target forward size); Sarathi-Serve, token budget.
    """

    target_tokens: int
    filling: Filling = Filling.CHUNKS

    def __post_init__(self) -> None:
        _check_positive("target_tokens", self.target_tokens)

    def choose(self, state: IterationState) -> IterationChoice:
        """Running sequences always; prompts as far as the target goes."""
        budget = self.target_tokens - state.num_decode
        match self.filling:
            case Filling.CHUNKS:
                chunks = _cut_in_order(state, budget)
            case Filling.WHOLE:
                chunks = _whole_in_order(state, budget, self.target_tokens)
            case Filling.FIT:
                chunks = _whole_then_fit(state, budget)
        return IterationChoice(True, chunks)


@dataclass(frozen=True, slots=True)
class PromptsFirst:
    """Only prompts if any may be computed, else only running sequences.

    Prompts are whole. One that is longer than `max_tokens` goes in pieces of that size, in
    iterations of its own, until a remainder is left beside which others fit.
    Source: vLLM as of its paper (2023), with recomputation.
    """

    max_tokens: int
    # Running sequences and new ones together.
    max_seqs: int

    def __post_init__(self) -> None:
        _check_positive("max_tokens", self.max_tokens)
        _check_positive("max_seqs", self.max_seqs)

    def choose(self, state: IterationState) -> IterationChoice:
        """Either kind, never both."""
        max_prompts = self.max_seqs - state.num_decode
        chunks = _whole_in_order(state, self.max_tokens, self.max_tokens, max_prompts)
        return IterationChoice(not chunks, chunks)


@dataclass(frozen=True, slots=True)
class WholePromptsMixed:
    """All running sequences and, beside them, whole new prompts up to `max_seqs`.

    Source: Orca, iteration-level scheduling with selective batching. It knows no limit of tokens;
    set `max_tokens` where the engine has one.
    """

    max_seqs: int
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_positive("max_seqs", self.max_seqs)
        if self.max_tokens is not None:
            _check_positive("max_tokens", self.max_tokens)

    def choose(self, state: IterationState) -> IterationChoice:
        """Running sequences always."""
        max_prompts = self.max_seqs - state.num_decode
        if self.max_tokens is None:
            num_missing = sum(work.num_missing_tokens for work in state.prompts)
            chunks = _whole_in_order(state, num_missing, num_missing, max_prompts)
        else:
            budget = self.max_tokens - state.num_decode
            chunks = _whole_in_order(state, budget, self.max_tokens, max_prompts)
        return IterationChoice(True, chunks)


@dataclass(frozen=True, slots=True)
class WaitingRatio:
    """Running sequences pause for a batch of prompts when it is worth it.

    It is when the batch has at least `ratio` times as many prompts as sequences run, or when
    `max_steps_without_prompt` iterations took no prompt in. Between two such batches every
    sequence gets a token. `is_chunking` is the newer way: every iteration is filled to the cap,
    which then counts tokens of running sequences too.
    Source: Text Generation Inference, router and its queue (waiting_served_ratio,
    max_waiting_tokens, max_batch_prefill_tokens).
    """

    # Tokens of prompts in one iteration.
    max_prompt_tokens: int
    ratio: float = 0.3
    max_steps_without_prompt: int = 20
    is_chunking: bool = False

    def __post_init__(self) -> None:
        _check_positive("max_prompt_tokens", self.max_prompt_tokens)
        if self.ratio < 0:
            raise ValueError(f"ratio must be at least 0, got {self.ratio}")

    def choose(self, state: IterationState) -> IterationChoice:
        """Either kind, or both where chunking."""
        if self.is_chunking:
            return FillToTarget(self.max_prompt_tokens).choose(state)
        chunks = _whole_in_order(state, self.max_prompt_tokens, self.max_prompt_tokens)
        if not chunks or not self._is_worth_a_pause(state, len(chunks)):
            return IterationChoice(True)
        return IterationChoice(False, chunks)

    def _is_worth_a_pause(self, state: IterationState, num_prompts: int) -> bool:
        # What is begun is one long prompt, whose pieces stand for a single pass.
        if not state.num_decode or state.num_in_progress:
            return True
        if not state.num_steps_without_prompt:
            return False
        if state.num_steps_without_prompt >= self.max_steps_without_prompt:
            return True
        return num_prompts >= math.floor(self.ratio * state.num_decode)


def _cut_in_order(state: IterationState, budget: int) -> _Chunks:
    chunks: list[tuple[int, int]] = []
    for index in range(state.num_choosable):
        if budget <= 0:
            break
        num_tokens = min(state.prompts[index].num_missing_tokens, budget)
        chunks.append((index, num_tokens))
        budget -= num_tokens
    return tuple(chunks)


def _whole_in_order(
    state: IterationState, budget: int, max_tokens: int, max_prompts: int | None = None
) -> _Chunks:
    """Whole prompts until one does not fit the budget, of at most max_tokens.

    Only what no budget could hold is cut, when nothing comes before it, and goes on being cut.
    """
    chunks: list[tuple[int, int]] = []
    num_begun = state.num_in_progress
    for index in range(state.num_choosable):
        missing = state.prompts[index].num_missing_tokens
        is_over = index >= num_begun and max_prompts is not None and len(chunks) >= max_prompts
        if budget <= 0 or is_over:
            break
        if missing > budget and index >= num_begun and (chunks or missing <= max_tokens):
            break
        num_tokens = min(missing, budget)
        chunks.append((index, num_tokens))
        budget -= num_tokens
    return tuple(chunks)


def _whole_then_fit(state: IterationState, budget: int) -> _Chunks:
    chunks: list[tuple[int, int]] = []
    num_begun = state.num_in_progress
    index = 0
    while index < state.num_choosable and budget > 0:
        missing = state.prompts[index].num_missing_tokens
        if missing > budget and index >= num_begun and chunks:
            break
        num_tokens = min(missing, budget)
        chunks.append((index, num_tokens))
        budget -= num_tokens
        index += 1
    rest = range(index, state.num_choosable)
    # Taking the longest that fits again and again is one walk from the longest to the shortest.
    for index in sorted(rest, key=lambda i: -state.prompts[i].num_missing_tokens):
        missing = state.prompts[index].num_missing_tokens
        if missing <= budget:
            chunks.append((index, missing))
            budget -= missing
    return tuple(chunks)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
