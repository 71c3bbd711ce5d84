"""What keeps two workers from exchanging KV, in words. Pure."""

from collections.abc import Iterable

from scheduling.messages import WorkerHello

_MAX_NAMED = 3


def closest_difference(prefill: Iterable[WorkerHello], decode: Iterable[WorkerHello]) -> str | None:
    """In what the two that are most alike differ, with both values; None where nobody tells."""
    decode = list(decode)
    pairs = [
        (named, one, other)
        for one in prefill
        for other in decode
        if (named := _differences(one, other))
    ]
    if not pairs:
        return None
    named, one, other = min(pairs, key=lambda pair: len(pair[0]))
    told = ", ".join(f"{name} {mine} and {theirs}" for name, mine, theirs in named[:_MAX_NAMED])
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return f"{one.worker_id} and {other.worker_id} have {told}{more}"


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
