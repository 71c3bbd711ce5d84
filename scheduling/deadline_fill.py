"""Iterations by what is due: gentle to answers while every first token is in time all the same.

Where one is not, answers give what they have: their goal is the mean gap, so one that has been
faster may pause; a pass without its token is shorter, and first tokens come earlier. An answer that
is behind gets its token in every pass, and prompts only as much as its pace leaves. Where somebody
wants each gap to be short, none is longer, and first tokens are late.
Source: AccelGen's slack order and dynamic chunks, with the pace of the whole answer in place of the
last gap.
"""

import heapq
import math
from dataclasses import dataclass
from typing import TypeAlias

from scheduling.batch_time import BatchShape, BatchTimeModel
from scheduling.batch_time_limits import max_prompt_tokens
from scheduling.batching import IterationChoice, IterationState
from scheduling.triage import LATE_SHARE

# Of a goal for gaps: what passes are planned for. Predictions are a few percent off.
_MARGIN = 0.95
# Of the time until a first token is due; the rest is for prompts that are still to come.
_GENTLE_SHARE = 0.5
# Answers may fall behind only where a pass of their own costs little more than their part of a
# common one: else the weights that are read once more are time that nobody has.
_CHEAP_SHARE = 0.8

# Indices of prompts: those with which the most first tokens are in time, and the others.
Order: TypeAlias = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class DeadlineFill:
    """Never more than `target_tokens` in a pass; the last prompt is cut."""

    model: BatchTimeModel
    target_tokens: int
    # Prompts get so many tokens even where answers are behind: else they could wait until all end.
    min_prompt_tokens: int = 64
    # An answer may fall behind as far as so many tokens without a pause make up for: where it
    # pauses, and where it has its token in a long pass, which it may meet again and again.
    catch_up_tokens: int = 8
    long_pass_catch_up_tokens: int = 2
    # The longest pause, in goals for the mean gap: a reader notices it, whatever the mean is.
    max_pause_goals: float = 4.0

    def __post_init__(self) -> None:
        if self.target_tokens < 1 or self.min_prompt_tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self}")

    def choose(self, state: IterationState) -> IterationChoice:
        """Every gap within its goal if prompts allow it; else prompts alone if answers do."""
        order = self.order(state)
        if not state.num_decode:
            return IterationChoice(True, self._filled(state, order, BatchShape(), math.inf))
        running = BatchShape(state.num_decode, state.decode_context)
        if not self._is_pressed(state, order[0], running):
            limit_s = min(_MARGIN * state.tightest_tpot_s, _gap_left_s(state))
            chunks = self._filled(state, order, running, limit_s)
            return IterationChoice(True, chunks)
        running_s = self.model.seconds(running)
        alone = self._filled(state, order, BatchShape(), math.inf)
        prompts_s = self.model.seconds(_with(state, BatchShape(), alone))
        beside_s = self.model.seconds(_with(state, running, alone)) - prompts_s
        may_fall_behind = beside_s >= _CHEAP_SHARE * running_s
        left_s = self._left_s(state, running_s, self.catch_up_tokens if may_fall_behind else 0)
        if alone and prompts_s + running_s <= left_s:
            return IterationChoice(False, alone)
        long_s = self._left_s(state, running_s, self.long_pass_catch_up_tokens)
        chunks = self._ending_in(state, order, running, long_s)
        if not chunks:
            limit_s = min(max(left_s, state.tightest_tpot_s), _gap_left_s(state))
            chunks = self._filled(state, order, running, limit_s)
        return IterationChoice(True, chunks)

    def _ending_in(
        self, state: IterationState, order: Order, running: BatchShape, limit_s: float
    ) -> tuple[tuple[int, int], ...]:
        """A long pass for the first tokens that it brings, and the share of a late one; nothing
        where it brings none."""
        timely, others = order
        chunks = self._filled(state, order, running, limit_s)
        ending = [c for c in chunks if c[1] == state.prompts[c[0]].num_missing_tokens]
        if not any(index in timely for index, _ in ending):
            return ()
        late = others[:1]
        return tuple(chunk for chunk in chunks if chunk in ending or chunk[0] in late)

    def _filled(
        self, state: IterationState, order: Order, shape: BatchShape, limit_s: float
    ) -> tuple[tuple[int, int], ...]:
        """Chunks beside what is there already: no pass is so long that a first token which it
        brings, and which could be in time, is late."""
        timely, others = order
        chunks: dict[int, int] = {}
        budget = self.target_tokens - shape.num_decode
        # The one that has been late for longest moves on in every pass: nobody waits for ever.
        turns = [(index, budget) for index in timely + others]
        if timely and others:
            short_s = min(limit_s, state.tightest_tpot_s)
            most = max_prompt_tokens(self.model, shape, short_s, budget)
            turns.insert(0, (others[0], max(1, int(LATE_SHARE * most))))
        for index, at_most in turns:
            work, done = state.prompts[index], chunks.get(index, 0)
            start, missing = work.num_computed_tokens + done, work.num_missing_tokens - done
            if not missing:
                continue  # its share was enough
            wanted = min(missing, budget, at_most)
            num_tokens = max_prompt_tokens(self.model, shape, limit_s, wanted, start)
            if not chunks:
                # The first moves on whatever it costs.
                num_tokens = max(num_tokens, min(wanted, self.min_prompt_tokens))
            if num_tokens <= 0:
                break
            chunks[index] = done + num_tokens
            budget -= num_tokens
            shape = shape.with_chunk(start, num_tokens)
            if num_tokens < min(missing, at_most):
                break
            due_in_s = work.due_at_s - state.now
            if num_tokens == missing and self.model.seconds(shape) <= due_in_s:
                limit_s = min(limit_s, due_in_s)
        return tuple(chunks.items())

    def _is_pressed(self, state: IterationState, timely: list[int], running: BatchShape) -> bool:
        """A first token would be late if no pass took longer than the goal of a gap."""
        goal_s = _MARGIN * state.tightest_tpot_s
        if math.isinf(goal_s):
            return False
        most = self.target_tokens - state.num_decode
        per_pass = max_prompt_tokens(self.model, running, goal_s, most)
        num_tokens = 0
        for index in timely:
            work = state.prompts[index]
            num_tokens += work.num_missing_tokens
            num_passes = math.ceil(num_tokens / max(per_pass, self.min_prompt_tokens))
            if num_passes * goal_s > _GENTLE_SHARE * (work.due_at_s - state.now):
                return True
        return False

    def order(self, state: IterationState) -> Order:
        """First those with which the most first tokens are in time, then the others; each by when
        they are due. Source: Moore (1968), the least number of late jobs on one machine."""
        by_due = sorted(range(state.num_choosable), key=lambda i: (state.prompts[i].due_at_s, i))
        timely: list[tuple[float, int]] = []
        end_at_s = state.now
        for index in by_due:
            work = state.prompts[index]
            chunk = BatchShape().with_chunk(work.num_computed_tokens, work.num_missing_tokens)
            takes_s = self.model.seconds(chunk)
            heapq.heappush(timely, (-takes_s, index))
            end_at_s += takes_s
            if end_at_s > work.due_at_s:
                # One of those so far is late whatever the order: let it be the longest.
                end_at_s += heapq.heappop(timely)[0]
        kept = {index for _, index in timely}
        return [i for i in by_due if i in kept], [i for i in by_due if i not in kept]

    def _left_s(self, state: IterationState, running_s: float, num_behind: int) -> float:
        goal_s = state.tightest_tpot_s
        if math.isinf(goal_s):
            return math.inf
        made_up_s = num_behind * max(0.0, goal_s - running_s)
        pause_ends_at_s = state.last_decode_at_s + self.max_pause_goals * goal_s
        left_s = min(state.next_token_due_at_s + made_up_s, pause_ends_at_s) - state.now
        return min(left_s, _gap_left_s(state))


def _gap_left_s(state: IterationState) -> float:
    """How long a pass may take so that no single gap exceeds its goal."""
    if math.isinf(state.tightest_tbt_s):
        return math.inf
    # Where nothing has decoded yet, no gap has begun.
    began_at_s = max(state.newest_tokens_at_s, state.now - state.tightest_tbt_s)
    return began_at_s + _MARGIN * state.tightest_tbt_s - state.now


def _with(
    state: IterationState, shape: BatchShape, chunks: tuple[tuple[int, int], ...]
) -> BatchShape:
    for index, num_tokens in chunks:
        shape = shape.with_chunk(state.prompts[index].num_computed_tokens, num_tokens)
    return shape
