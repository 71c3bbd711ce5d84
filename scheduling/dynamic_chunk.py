"""Iterations as large as the tightest latency goal allows, filled in order of slack. Pure.

A batch-time model says how long an iteration would take. One without a fixed cost makes it the
published rule, S_b = S_pf * SLO_min / T_pf; a fitted one also knows what running sequences and
attention cost.
Source: AccelGen, dynamic chunking, iteration-level prioritisation, multi-resource batching.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from scheduling.batch_time import BatchShape, BatchTimeModel
from scheduling.batch_time_limits import ForwardSize, max_prompt_tokens
from scheduling.batching import IterationChoice, IterationState
from scheduling.two_resource_fit import Resources, closest_fit

# A time that equals the goal but for its last bits keeps it.
_ROUNDING = 1 + 1e-9


class IterationGoal(StrEnum):
    """How long an iteration may take for the sequences that run."""

    # The smallest TPOT goal among them.
    TPOT = "tpot"
    # What is left until the first of their next tokens is due.
    NEXT_TOKEN = "next_token"
    # As long as the largest iteration takes: chunks of fixed size.
    NONE = "none"

    def seconds(self, state: IterationState) -> float:
        """May be negative, where a token is late; inf where nobody runs, or nothing counts."""
        match self:
            case IterationGoal.TPOT:
                return state.tightest_tpot_s
            case IterationGoal.NEXT_TOKEN:
                return state.next_token_due_at_s - state.now
            case IterationGoal.NONE:
                return math.inf


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """What a policy may choose of `DynamicChunk`; see there."""

    goal: IterationGoal = IterationGoal.TPOT
    gamma_s: float = 0.75
    is_by_slack: bool = True
    is_cutting_one: bool = True
    # None: what the worker allows in one iteration.
    max_tokens: int | None = None
    # S_pf: the tokens that give so much of the best tokens/s; None: as many as are allowed.
    saturation: float | None = None
    # Of a goal: what iterations are planned for. Predictions are a few percent off.
    margin: float = 0.95

    def rule(self, model: BatchTimeModel, max_tokens: int) -> "DynamicChunk":
        """For a worker that takes so many tokens in one iteration."""
        return DynamicChunk(
            model,
            max_tokens if self.max_tokens is None else min(self.max_tokens, max_tokens),
            self.goal,
            self.gamma_s,
            is_by_slack=self.is_by_slack,
            is_cutting_one=self.is_cutting_one,
            saturation=self.saturation,
            margin=self.margin,
        )


@dataclass(frozen=True, slots=True)
class DynamicChunk:
    """Running sequences, and prompts until the iteration would be too long for the tightest goal.

    Goals are those of running sequences and of prompts whose first token the iteration brings.
    One prompt at a time is left half computed, unless another becomes urgent: it can still be in
    time, but not if it waits for one more iteration. Urgent ones go first; of the others, those
    within `gamma_s` of the least slack are taken in the order in which they fill tokens and blocks
    best; gamma_s = 0 is the order of slack alone.
    """

    model: BatchTimeModel
    # S_pf at most: tokens of an iteration beyond which nothing is gained, whatever goals allow.
    max_tokens: int
    goal: IterationGoal = IterationGoal.TPOT
    gamma_s: float = 0.75
    # Prompts get so many tokens even where a goal is missed: one that no iteration could keep would
    # otherwise let them wait until nobody runs.
    min_prompt_tokens: int = 16
    # False: nobody is urgent, and prompts go as the router sent them.
    is_by_slack: bool = True
    # False: any number of prompts may be half computed.
    is_cutting_one: bool = True
    # None: S_pf is `max_tokens`; else what gives so much of the best tokens/s, by the model.
    saturation: float | None = None
    # What iterations are planned for, of a goal of those that run.
    margin: float = 1.0
    _size: ForwardSize | None = field(init=False, default=None, compare=False)

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.gamma_s < 0 or self.min_prompt_tokens < 0:
            raise ValueError(
                "needs max_tokens >= 1, gamma_s >= 0 and min_prompt_tokens >= 0, got "
                f"{self.max_tokens}, {self.gamma_s} and {self.min_prompt_tokens}"
            )
        if self.saturation is not None:
            size = ForwardSize(self.model, self.max_tokens, self.saturation)
            object.__setattr__(self, "_size", size)

    @property
    def saturating_tokens(self) -> int:
        """S_pf as far as it is known now."""
        return self.max_tokens if self._size is None else self._size.num_tokens

    def choose(self, state: IterationState) -> IterationChoice:
        """Running sequences always; prompts by slack and fit."""
        filling = _Filling(self, state)
        waiting = self._by_slack(state, filling)
        for prompt in [each for each in waiting if each.is_urgent]:
            if num_tokens := filling.tokens_for(prompt):
                filling.add(prompt, num_tokens)
                waiting.remove(prompt)
        while offers := [(p, n) for p in waiting if (n := filling.tokens_for(p))]:
            horizon_s = offers[0][0].slack_s + self.gamma_s
            window = [(p, n) for p, n in offers if p.slack_s <= horizon_s]
            prompt, num_tokens = window[filling.best_of(window)]
            filling.add(prompt, num_tokens)
            waiting.remove(prompt)
        return IterationChoice(True, tuple(filling.chunks))

    def _by_slack(self, state: IterationState, filling: "_Filling") -> list["_Prompt"]:
        """The least slack first; equal ones as they came."""
        full_s = self.model.seconds(BatchShape(num_prompt_tokens=self.saturating_tokens))
        alone_s = self.model.seconds(BatchShape(state.num_decode, state.decode_context))
        iteration_s = max(alone_s, min(filling.limit_s, full_s))
        num_tokens = max(1, filling.room())
        prompts = []
        for index in range(state.num_choosable):
            work = state.prompts[index]
            num_iterations = math.ceil(work.num_missing_tokens / num_tokens)
            slack_s = work.due_at_s - state.now - num_iterations * iteration_s
            is_begun = index < state.num_in_progress
            is_urgent = self.is_by_slack and 0 <= slack_s < iteration_s
            prompts.append(_Prompt(index, slack_s, is_urgent, is_begun))
        if self.is_by_slack:
            prompts.sort(key=lambda prompt: (prompt.slack_s, prompt.index))
        return prompts


@dataclass(frozen=True, slots=True)
class _Prompt:
    index: int
    # What is left of the time until its first token is due, if it is computed without a pause.
    slack_s: float
    is_urgent: bool
    is_begun: bool


class _Filling:
    """One iteration while it fills up."""

    def __init__(self, rule: DynamicChunk, state: IterationState) -> None:
        self._rule = rule
        self._state = state
        self._shape = BatchShape(state.num_decode, state.decode_context)
        self._num_free_blocks = state.num_free_blocks
        # Begun prompts that are not in the iteration with all that is missing.
        self._num_partial = state.num_in_progress
        self._is_full = False
        # None: not known since something was added.
        self._room: int | None = None
        self._least_tokens = max(rule.min_prompt_tokens, 0 if state.num_decode else 1)
        self.limit_s = rule.margin * rule.goal.seconds(state)
        self.chunks: list[tuple[int, int]] = []

    def room(self) -> int:
        """Tokens that a prompt can be given from its beginning on; none gets more further back."""
        if self._room is None:
            self._room = self._room_from(0, self._rule.saturating_tokens)
        return self._room

    def tokens_for(self, prompt: _Prompt) -> int:
        """What this prompt would get: all that is missing, a piece, or 0 for not now."""
        work = self._state.prompts[prompt.index]
        missing, start = work.num_missing_tokens, work.num_computed_tokens
        if self._is_full or self._needed_blocks(prompt) > self._num_free_blocks:
            return 0
        is_alone = self._num_partial == 0 or not self._rule.is_cutting_one
        may_cut = prompt.is_begun or prompt.is_urgent or is_alone
        if missing > self.room() and not may_cut:
            return 0
        room = min(self.room(), self._room_from(start, missing)) if start else self.room()
        if room < missing and not may_cut:
            return 0
        return min(room, missing)

    def best_of(self, offers: list[tuple[_Prompt, int]]) -> int:
        """Index of the offer after which least of tokens and blocks is left unused."""
        demands = [Resources(n, self._needed_blocks(p)) for p, n in offers]
        left = Resources(self.room(), self._num_free_blocks)
        capacity = Resources(self._rule.saturating_tokens, self._state.num_blocks)
        best = closest_fit(left, demands, capacity)
        assert best is not None, "each offer was made because it fits"
        return best

    def add(self, prompt: _Prompt, num_tokens: int) -> None:
        """Compute so many tokens of it."""
        work = self._state.prompts[prompt.index]
        self._shape = self._shape.with_chunk(work.num_computed_tokens, num_tokens)
        self._room = None
        self._num_free_blocks -= self._needed_blocks(prompt)
        self.chunks.append((prompt.index, num_tokens))
        if num_tokens < work.num_missing_tokens:
            self._is_full = True  # or it would not have been cut
            return
        self._num_partial -= prompt.is_begun
        # Its first token comes with this iteration, so its goal holds for it if it can be kept.
        left_s = work.due_at_s - self._state.now
        has_goal = self._rule.goal is not IterationGoal.NONE
        if has_goal and self._rule.model.seconds(self._shape) <= left_s * _ROUNDING:
            self.limit_s = min(self.limit_s, left_s)

    def _room_from(self, start: int, max_tokens: int) -> int:
        in_time = max_prompt_tokens(
            self._rule.model,
            self._shape,
            self.limit_s * _ROUNDING,
            min(max_tokens, self._rule.saturating_tokens - self._shape.num_tokens),
            start,
        )
        return max(in_time, self._least_tokens - self._shape.num_prompt_tokens)

    def _needed_blocks(self, prompt: _Prompt) -> int:
        if prompt.is_begun or not self._state.num_blocks:
            return 0
        return self._state.prompts[prompt.index].num_needed_blocks
