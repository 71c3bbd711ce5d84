"""Reads goals from the text that users write after --slo.

    ttft=1s,tpot=100ms                    every request
    ttft=5x,tbt=0.2                       five times the idle time; seconds where no unit stands
    ttft=1x+-50%,tbt=187.5ms+-25%         each request draws its own from the range
    class:chat@0.7:ttft=1s,tbt=100ms; class:batch@0.3:jct=600s
    tenant:alice:ttft=300ms; class:others:ttft=2s
    published, published:mooncake/strict  see simulator/published_slo.py
    accelgen, accelgen:3                  AccelGen's own goals, its TTFT times 3
    none                                  no goals: every request that finishes counts

Keys: ttft, jct, and of the tokens after the first: tpot (mean gap), tbt (each gap), tbt_p99 (the
99th percentile of a request's gaps), tbt_tail10 (mean of the longest tenth).
"""

import re

from simulator.published_slo import PublishedChoice, UnknownPublishedSlo, published_plan
from simulator.slo import GapRule, Goal, SloClass, SloPlan

MAX_CLASSES = 64
# The paper's TTFT goals are measured means times a factor from 0.5 to 1.5; below the idle time
# nobody could meet them, so the idle time is doubled unless another multiple is given.
ACCELGEN_SCALE = 2.0

# Times the first, over the second is seconds; so 9ms is the float 0.009.
_UNITS = {"": (1, 1), "s": (1, 1), "ms": (1, 1000), "us": (1, 1_000_000), "min": (60, 1)}
_VALUE = re.compile(
    r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[a-z]*)(?:\s*\+-\s*(?P<spread>\d+(?:\.\d*)?)%)?"
)
_EXPECTED = "write for example ttft=1s,tpot=100ms, or ttft=5x, or published"
_KEYS = ("ttft", "jct", *(rule.value for rule in GapRule))


class SloTextInvalid(ValueError):
    """The text names no goals that we know. The message ends in what to write."""

    def __init__(self, text: str, problem: str, to_do: str = _EXPECTED) -> None:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        super().__init__(f"--slo {shown!r}: {problem}; {to_do}")
        self.text = text


def slo_plan(text: str, choice: PublishedChoice) -> SloPlan:
    """The plan that a text asks for. Raises: SloTextInvalid."""
    name, _, rest = text.strip().partition(":")
    match name:
        case "none":
            _refuse_rest(text, rest)
            return SloPlan((SloClass(),), "none")
        case "published":
            try:
                return published_plan(rest, choice)
            except UnknownPublishedSlo as unknown:
                raise SloTextInvalid(text, unknown.problem, unknown.to_do) from None
        case "accelgen":
            return _accelgen(text, rest)
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if not 1 <= len(parts) <= MAX_CLASSES:
        raise SloTextInvalid(text, f"{len(parts)} classes, expected 1 to {MAX_CLASSES}")
    classes = tuple(_slo_class(text, part) for part in parts)
    named = [(one.name, one.tenant) for one in classes]
    if len(set(named)) < len(named):
        raise SloTextInvalid(text, "two classes have one name", "name each class once")
    return SloPlan(classes, "; ".join(" ".join(part.split()) for part in parts))


def _slo_class(text: str, part: str) -> SloClass:
    kind, has_name, rest = part.partition(":")
    if not has_name:
        return _with_goals(text, part, "default", 1.0, None)
    # A tenant's name may hold colons, goals do not.
    head, has_goals, goals = rest.rpartition(":")
    if kind not in ("class", "tenant") or not has_goals or not head:
        raise SloTextInvalid(text, f"{part!r} is no class", "write class:NAME@SHARE:ttft=1s")
    if kind == "tenant":
        return _with_goals(text, goals, head, 1.0, head)
    name, has_share, share = head.partition("@")
    number = _positive(text, "the share", share) if has_share else 1.0
    if not name:
        raise SloTextInvalid(text, f"{part!r} has no name", "write class:NAME@SHARE:ttft=1s")
    return _with_goals(text, goals, name, number, None)


def _positive(text: str, what: str, number: str) -> float:
    try:
        found = float(number)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise SloTextInvalid(text, f"{what} {number!r} is no number above 0", "write 0.3")
    return found


def _with_goals(text: str, goals: str, name: str, share: float, tenant: str | None) -> SloClass:
    by_key: dict[str, Goal] = {}
    for one in goals.split(","):
        key, _, value = (word.strip() for word in one.partition("="))
        if key not in _KEYS:
            raise SloTextInvalid(text, f"{key!r} is no goal", f"the goals are {', '.join(_KEYS)}")
        if key in by_key:
            raise SloTextInvalid(text, f"{key} is given twice", "give it once")
        by_key[key] = _goal(text, key, value)
    gaps = tuple((rule, by_key[rule.value]) for rule in GapRule if rule.value in by_key)
    return SloClass(name, share, tenant, by_key.get("ttft"), gaps, by_key.get("jct"))


def _goal(text: str, key: str, value: str) -> Goal:
    found = _VALUE.fullmatch(value)
    if found is None:
        raise SloTextInvalid(text, f"{key} is {value!r}", "give a time (1s, 100ms) or 5x")
    number, unit = float(found["number"]), found["unit"]
    spread = float(found["spread"] or 0) / 100
    if number <= 0 or number > 1e9 or spread >= 1:
        raise SloTextInvalid(text, f"{key} is {value!r}", "give more than 0, and +- less than 100%")
    if unit == "x":
        return Goal(slowdown=number, spread=spread)
    if unit not in _UNITS:
        raise SloTextInvalid(text, f"{unit!r} is no unit of time", "units are s, ms, us, min, x")
    times, per = _UNITS[unit]
    return Goal(seconds=number * times / per, spread=spread)


def _accelgen(text: str, scale: str) -> SloPlan:
    number = _positive(text, "the factor", scale) if scale else ACCELGEN_SCALE
    chosen = SloClass(
        ttft=Goal(slowdown=number, spread=0.5, prompt_class_tokens=512),
        gaps=((GapRule.EACH, Goal(seconds=0.1875, spread=0.25)),),
    )
    goals = f"ttft={number:g}x+-50%,tbt=187.5ms+-25%"
    return SloPlan((chosen,), goals, "AccelGen, TTFT by prompt classes of 512 tokens")


def _refuse_rest(text: str, rest: str) -> None:
    if rest:
        raise SloTextInvalid(text, f"{rest!r} follows 'none'", "write none alone")
