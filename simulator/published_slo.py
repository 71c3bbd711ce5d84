"""Goals that others have published, and which of them suit a model and a trace.

`published` takes the evaluation whose workload is most like the trace, and of its models the one
nearest in size (docs/decisions/goals-without-slo.md); `published:SOURCE` and
`published:SOURCE/CLASS` name one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from simulator.published_slo_rows import PUBLISHED_SLOS
from simulator.slo import GapRule, Goal, SloClass, SloPlan
from simulator.traces.published_slos import AbsoluteLimit, LatencyLimit, PublishedSlo

# Between the means of published workloads, halfway on a logarithmic scale: LongBench's prompts of
# 1,738 tokens and Mooncake's of 12,035;
LONG_PROMPT_TOKENS = 4500
# prompt over answer in ShareGPT (755 and 200) and in LongBench (1,738 and 91).
SUMMARY_PROMPT_SHARE = 8.5

_RULE_BY_METRIC = {
    "mean per output token": GapRule.MEAN,
    "slowdown against an idle DGX-A100": GapRule.MEAN,
    "mean of the longest 10% of gaps": GapRule.LONGEST_TENTH,
    "P99 gap between tokens": GapRule.P99,
}
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)B\b")
_WHOLE_SLOWDOWN = re.compile(r"end-to-end slowdown (\d+(?:\.\d+)?)x")


class UnknownPublishedSlo(ValueError):
    """No published goals have that name."""

    def __init__(self, problem: str, to_do: str) -> None:
        super().__init__(f"{problem}; {to_do}")
        self.problem, self.to_do = problem, to_do


class _Kind(StrEnum):
    CHAT = "chat"
    CODE = "code completion"
    SUMMARY = "summarisation"
    LONG = "long prompts"


@dataclass(frozen=True, slots=True)
class PublishedChoice:
    """What published goals are chosen by."""

    # > 0.
    model_billions: float
    # Means over the trace, > 0.
    prompt_tokens: float
    output_tokens: float
    rows: Sequence[PublishedSlo] = PUBLISHED_SLOS


def published_plan(which: str, choice: PublishedChoice) -> SloPlan:
    """Goals by "SOURCE/CLASS", "SOURCE" or "". Raises: UnknownPublishedSlo."""
    source, _, name = which.partition("/")
    wanted = _kind_of_trace(choice)
    if source:
        rows = _named(choice.rows, lambda row: row.source, source)
        if name:
            rows = _named(rows, lambda row: row.service_class, name)
        rows = [row for row in rows if _kind(row) is wanted] or rows
    else:
        rows = [row for row in choice.rows if _kind(row) is wanted and _has_both_in_seconds(row)]
    if not rows:
        raise UnknownPublishedSlo(f"no published goals for {wanted}", "give goals: ttft=1s,...")
    nearest = min(rows, key=lambda row: _distance(row, choice.model_billions))
    first = next(row for row in rows if row.model == nearest.model)
    # Classes that are drawn at random belong together.
    chosen = [first]
    if first.share is not None and not name:
        chosen = [row for row in rows if row.model == first.model and row.share is not None]
    classes = tuple(_slo_class(row, is_alone=len(chosen) == 1) for row in chosen)
    text = "; ".join(_text(one) for one in classes)
    class_of_source = f", {first.service_class}" if len(chosen) == 1 else ""
    origin = f"{first.source}, {first.model}, {first.workload}{class_of_source}"
    return SloPlan(classes, text, origin)


def _kind_of_trace(choice: PublishedChoice) -> _Kind:
    if choice.prompt_tokens >= LONG_PROMPT_TOKENS:
        return _Kind.LONG
    if choice.prompt_tokens >= SUMMARY_PROMPT_SHARE * choice.output_tokens:
        return _Kind.SUMMARY
    return _Kind.CHAT


def _kind(row: PublishedSlo) -> _Kind:
    if "summarisation" in row.workload:
        return _Kind.SUMMARY
    if "code completion" in row.workload:
        return _Kind.CODE
    return _Kind.LONG if row.source == "mooncake" else _Kind.CHAT


def _has_both_in_seconds(row: PublishedSlo) -> bool:
    return isinstance(row.ttft, AbsoluteLimit) and isinstance(row.per_token, AbsoluteLimit)


def _distance(row: PublishedSlo, billions: float) -> float:
    """How much larger or smaller the model is, as a logarithm."""
    sizes = [float(size) for size in _BILLIONS.findall(row.model)]
    return min((abs(math.log(size / billions)) for size in sizes), default=math.inf)


def _named(
    rows: Sequence[PublishedSlo], name_of: Callable[[PublishedSlo], str], name: str
) -> list[PublishedSlo]:
    found = [row for row in rows if name_of(row) == name]
    if not found:
        known = dict.fromkeys(name_of(row) for row in rows)
        raise UnknownPublishedSlo(f"{name!r} is unknown", f"known are {', '.join(known)}")
    return found


def _slo_class(row: PublishedSlo, *, is_alone: bool) -> SloClass:
    first, whole = _goal(row.ttft), None
    if row.per_token_metric == "deadline":
        # Of the whole answer, though it stands in the column of the first token.
        first, whole = None, first
    elif slowdown := _WHOLE_SLOWDOWN.search(row.attainment_rule):
        whole = Goal(slowdown=float(slowdown[1]))
    per_token = _goal(row.per_token)
    gaps: tuple[tuple[GapRule, Goal], ...] = ()
    if per_token is not None:
        gaps = ((_RULE_BY_METRIC.get(row.per_token_metric, GapRule.MEAN), per_token),)
    return SloClass(
        name="default" if is_alone else row.service_class,
        share=1.0 if row.share is None else row.share,
        ttft=first,
        gaps=gaps,
        jct=whole,
    )


def _goal(limit: LatencyLimit | None) -> Goal | None:
    if limit is None:
        return None
    if isinstance(limit, AbsoluteLimit):
        return Goal(seconds=limit.seconds)
    return Goal(slowdown=limit.factor)


def _text(one: SloClass) -> str:
    """As users may write it."""
    goals = [("ttft", one.ttft), *((rule.value, goal) for rule, goal in one.gaps), ("jct", one.jct)]
    text = ",".join(f"{key}={_short(goal)}" for key, goal in goals if goal is not None)
    return text if one.name == "default" else f"class:{one.name}@{one.share:.4g}:{text}"


def _short(goal: Goal) -> str:
    if goal.seconds is None:
        return f"{goal.slowdown:g}x"
    return f"{goal.seconds:g}s" if goal.seconds >= 1 else f"{goal.seconds * 1000:g}ms"
