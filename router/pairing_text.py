"""What keeps two workers from exchanging KV, in words. Pure."""

from collections.abc import Iterable

from scheduling.ids import WorkerId
from scheduling.messages import WorkerHello

_MAX_NAMED = 3
# Longer than what workers of ours say, and short enough for an error.
_MAX_CHARS = 120


def closest_difference(prefill: Iterable[WorkerHello], decode: Iterable[WorkerHello]) -> str | None:
    """In what the two that are most alike differ, with both values; None where nobody tells.

    Where all that do not fit are silent, who these are.
    """
    prefill, decode = list(prefill), list(decode)
    pairs = [
        (named, one, other)
        for one in prefill
        for other in decode
        if (named := _differences(one, other))
    ]
    if not pairs:
        return _silent([hello.worker_id for hello in (*prefill, *decode) if not hello.traits])
    named, one, other = min(pairs, key=lambda pair: len(pair[0]))
    cut = [tuple(map(_short, each)) for each in named[:_MAX_NAMED]]
    told = ", ".join(f"{name} {mine} and {theirs}" for name, mine, theirs in cut)
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return f"{one.worker_id} and {other.worker_id} have {told}{more}"


def _silent(names: list[WorkerId]) -> str | None:
    """That these are of a release before workers said what they have; None for nobody."""
    if not names:
        return None
    if len(names) > _MAX_NAMED:
        who = f"{', '.join(names[:_MAX_NAMED])} and {len(names) - _MAX_NAMED} more"
    else:
        who = " and ".join(names)
    are = "is" if len(names) == 1 else "are"
    return f"{who} {are} of an earlier release, which does not say what it has"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."


def _differences(one: WorkerHello, other: WorkerHello) -> list[tuple[str, str, str]]:
    mine, theirs = _by_name(one), _by_name(other)
    if not mine or not theirs:
        return []
    names = dict.fromkeys([*mine, *theirs])
    every = [(name, mine.get(name, "unknown"), theirs.get(name, "unknown")) for name in names]
    return [(name, left, right) for name, left, right in every if left != right]


def _by_name(hello: WorkerHello) -> dict[str, str]:
    parted = [trait.partition("=") for trait in hello.traits]
    return {name: value for name, _, value in parted}
