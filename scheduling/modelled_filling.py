"""The token budget of an iteration, from a model of batch times instead of a fixed number. Pure.

A fixed budget is right for one model on one machine: where passes are short, thousands of tokens
delay every answer beyond its goal, and past the knee they gain nothing. A worker's model follows
its own passes, so both budgets do.
"""

import math
from dataclasses import dataclass, field

from scheduling.batch_time import BatchShape, BatchTimeModel
from scheduling.batch_time_limits import ForwardSize, max_prompt_tokens
from scheduling.batching import IterationChoice, IterationState
from scheduling.batching_rules import Filling, FillToTarget

# Of a goal for gaps: what passes are planned for. Predictions are a few percent off.
_MARGIN = 0.95


@dataclass(frozen=True, slots=True)
class FillToKnee:
    """One token per running sequence; prompts fill the rest of the target forward size.

    Source: EcoServe, target forward size.
    """

    model: BatchTimeModel
    max_tokens: int
    filling: Filling = Filling.FIT
    size: ForwardSize = field(init=False, compare=False)

    def __post_init__(self) -> None:
        FillToTarget(self.max_tokens)  # refuses what is no limit
        object.__setattr__(self, "size", ForwardSize(self.model, self.max_tokens))

    def choose(self, state: IterationState) -> IterationChoice:
        """Running sequences always; prompts as far as the knee."""
        return FillToTarget(self.size.num_tokens, self.filling).choose(state)


@dataclass(frozen=True, slots=True)
class FillWithinGoal:
    """One token per running sequence, then prompts in order, cut where the pass would be too long.

    The budget is the largest with which the pass keeps the tightest goal for gaps of those that
    run, as an operator of Sarathi-Serve finds it by profiling for the goal he serves; here it is
    found for the batch at hand, which is kinder than one number for the fullest batch.
    Source: Sarathi-Serve, stall-free batching and the choice of its token budget.
    """

    model: BatchTimeModel
    max_tokens: int
    # Prompts get so many tokens even where no pass keeps the goal: the smallest chunk that is of
    # use to a matrix product, and less would let prompts wait until answers end.
    min_prompt_tokens: int = 128

    def __post_init__(self) -> None:
        FillToTarget(self.max_tokens)  # refuses what is no limit
        if self.min_prompt_tokens < 1:
            raise ValueError(f"min_prompt_tokens must be at least 1, got {self.min_prompt_tokens}")

    def choose(self, state: IterationState) -> IterationChoice:
        """Running sequences always; prompts as far as the goal."""
        num_decode = state.num_decode
        if not state.num_choosable:
            return IterationChoice(True)
        if not num_decode or math.isinf(state.tightest_tpot_s):
            return FillToTarget(self.max_tokens).choose(state)
        running = BatchShape(num_decode, state.decode_context)
        # The first in line has the longest way behind it; its attention counts for all.
        start = state.prompts[0].num_computed_tokens
        most = max(0, self.max_tokens - num_decode)
        limit_s = _MARGIN * state.tightest_tpot_s
        in_time = max_prompt_tokens(self.model, running, limit_s, most, start)
        budget = num_decode + max(in_time, min(most, self.min_prompt_tokens))
        return FillToTarget(budget).choose(state)
