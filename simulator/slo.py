"""What requests are promised: goals on the first token, on the tokens after it, on the whole.

A goal is absolute or a multiple of what the request would take on an idle cluster. A plan says
which goals a request gets; `simulator/slo_text.py` reads plans from text.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduling.batch_time import BatchShape, BatchTimeModel

# Prompt and output tokens to seconds.
_IdleTime = Callable[[int, int], float]

# Prompts are prefilled at most so many tokens at a time where nobody says otherwise.
IDLE_CHUNK_TOKENS = 8192


class GapRule(StrEnum):
    """What of the gaps between a request's tokens is compared with its goal."""

    MEAN = "tpot"
    EACH = "tbt"
    P99 = "tbt_p99"
    # Mooncake's: the mean of the longest tenth.
    LONGEST_TENTH = "tbt_tail10"


@dataclass(frozen=True, slots=True)
class RequestSlo:
    """The goals of one request in seconds; inf and () where there is none."""

    request_class: str = "default"
    # From arrival to the first token.
    ttft_s: float = math.inf
    # From arrival to the last token.
    jct_s: float = math.inf
    # All of them are to be met.
    gaps: tuple[tuple[GapRule, float], ...] = ()

    @property
    def tpot_s(self) -> float:
        """The smallest goal per token: what a scheduler works towards; inf without any."""
        return min((seconds for _, seconds in self.gaps), default=math.inf)

    @property
    def tbt_s(self) -> float:
        """The smallest goal that counts single gaps, however few of them; inf without any."""
        each = (seconds for rule, seconds in self.gaps if rule is not GapRule.MEAN)
        return min(each, default=math.inf)


NO_SLO = RequestSlo()


@dataclass(frozen=True, slots=True)
class Goal:
    """Seconds, or a multiple of the idle time; exactly one of them is given, and > 0."""

    seconds: float | None = None
    slowdown: float | None = None
    # Each request draws a factor from [1 - spread, 1 + spread]; 0 <= spread < 1.
    spread: float = 0.0
    # Idle times are those of the prompt rounded up to a multiple of so many tokens.
    prompt_class_tokens: int = 1

    def __post_init__(self) -> None:
        value = self.seconds if self.slowdown is None else self.slowdown
        is_one = (self.seconds is None) != (self.slowdown is None)
        if not is_one or value is None or not 0 < value < math.inf or not 0 <= self.spread < 1:
            raise ValueError(f"a goal is either seconds or a slowdown, and > 0, got {self}")


@dataclass(frozen=True, slots=True)
class SloClass:
    """Goals of some of the requests: of a tenant, or of a share of the others."""

    name: str = "default"
    # Of the requests whose tenant has no class of its own, beside the other classes' shares.
    share: float = 1.0
    # Only this tenant's requests, and all of them; None: any.
    tenant: str | None = None
    ttft: Goal | None = None
    gaps: tuple[tuple[GapRule, Goal], ...] = ()
    jct: Goal | None = None


@dataclass(frozen=True, slots=True)
class SloPlan:
    """At least one class; `text` is how the plan is named in reports."""

    classes: tuple[SloClass, ...]
    text: str
    # Where the goals were published; "" where they were given.
    source: str = ""

    @property
    def fixed_ttft_s(self) -> float | None:
        """The goal on the first token that every request has; None where they differ."""
        return _fixed(self.classes, lambda one: one.ttft)

    @property
    def fixed_token_s(self) -> float | None:
        """The goal per token that every request has; None where they differ."""
        return _fixed(self.classes, lambda one: one.gaps[0][1] if len(one.gaps) == 1 else None)


class IdleTimes(Protocol):
    """What a request takes when it has the cluster to itself."""

    def first_token_s(self, num_prompt_tokens: int) -> float: ...

    def per_token_s(self, num_prompt_tokens: int, num_output_tokens: int) -> float: ...


class ModelledIdleTimes:
    """Idle times by a batch-time model: one sequence alone, the prompt in chunks."""

    def __init__(self, model: BatchTimeModel, chunk_tokens: int = IDLE_CHUNK_TOKENS) -> None:
        self._model = model
        self._chunk_tokens = chunk_tokens
        self._first_token_s_by_prompt: dict[int, float] = {}

    def first_token_s(self, num_prompt_tokens: int) -> float:
        """Seconds of all chunks of the prompt."""
        known = self._first_token_s_by_prompt.get(num_prompt_tokens)
        if known is None:
            begins = range(0, num_prompt_tokens, self._chunk_tokens)
            ends = (min(begin + self._chunk_tokens, num_prompt_tokens) for begin in begins)
            chunks = (
                BatchShape().with_chunk(begin, end - begin)
                for begin, end in zip(begins, ends, strict=True)
            )
            known = math.fsum(self._model.seconds(chunk) for chunk in chunks)
            self._first_token_s_by_prompt[num_prompt_tokens] = known
        return known

    def per_token_s(self, num_prompt_tokens: int, num_output_tokens: int) -> float:
        """Seconds of a decode step at the answer's middle: the mean, as time is linear there."""
        middle = num_prompt_tokens + num_output_tokens // 2
        return self._model.seconds(BatchShape().with_decode(middle))


class SloRequest(Protocol):
    """What goals depend on."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_output_tokens(self) -> int: ...

    @property
    def tenant(self) -> str: ...


class SloAssignment:
    """Gives each request its goals. The same plan, seed and requests give the same goals."""

    def __init__(self, plan: SloPlan, idle: IdleTimes, seed: int) -> None:
        self._idle = idle
        self._rng = random.Random(seed)
        self._class_by_tenant = {c.tenant: c for c in plan.classes if c.tenant is not None}
        self._drawn = [c for c in plan.classes if c.tenant is None]
        self._shares = [c.share for c in self._drawn]
        # Requests with equal goals share one object.
        self._same: dict[RequestSlo, RequestSlo] = {}

    def slos_of(self, requests: Sequence[SloRequest]) -> list[RequestSlo]:
        """Of each request, in the order of the workload, not of arrival."""
        return [self._slo_of(request) for request in requests]

    def _slo_of(self, request: SloRequest) -> RequestSlo:
        chosen = self._class_by_tenant.get(request.tenant)
        if chosen is None and len(self._drawn) > 1:
            (chosen,) = self._rng.choices(self._drawn, self._shares)
        elif chosen is None and self._drawn:
            chosen = self._drawn[0]
        if chosen is None:
            return NO_SLO
        slo = RequestSlo(
            chosen.name,
            self._seconds(chosen.ttft, request, self._first_token_s),
            self._seconds(chosen.jct, request, self._job_s),
            tuple(
                (rule, self._seconds(goal, request, self._idle.per_token_s))
                for rule, goal in chosen.gaps
            ),
        )
        return self._same.setdefault(slo, slo)

    def _seconds(self, goal: Goal | None, request: SloRequest, idle_s: _IdleTime) -> float:
        if goal is None:
            return math.inf
        factor = 1.0
        if goal.spread:
            factor = self._rng.uniform(1 - goal.spread, 1 + goal.spread)
        if goal.seconds is not None:
            return goal.seconds * factor
        assert goal.slowdown is not None
        step = goal.prompt_class_tokens
        num_prompt_tokens = -(-request.num_prompt_tokens // step) * step
        return goal.slowdown * factor * idle_s(num_prompt_tokens, request.num_output_tokens)

    def _first_token_s(self, num_prompt_tokens: int, num_output_tokens: int) -> float:
        return self._idle.first_token_s(num_prompt_tokens)

    def _job_s(self, num_prompt_tokens: int, num_output_tokens: int) -> float:
        # EcoServe's form: prefill time, and a time per token for every token of the answer.
        per_token_s = self._idle.per_token_s(num_prompt_tokens, num_output_tokens)
        return self._idle.first_token_s(num_prompt_tokens) + num_output_tokens * per_token_s


def _fixed(classes: Sequence[SloClass], goal_of: Callable[[SloClass], Goal | None]) -> float | None:
    goals = {goal_of(one) for one in classes}
    (goal,) = goals if len(goals) == 1 else (None,)
    return None if goal is None or goal.spread else goal.seconds
