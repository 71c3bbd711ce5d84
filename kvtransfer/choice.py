"""Which way into a pool a sender takes: the first of its own that works, and why not the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from kvtransfer.errors import (
    DeviceFailed,
    ExportUnavailable,
    LayoutMismatch,
    LinkBroken,
    PathTooSlow,
    PeerGone,
    TransferError,
    WrongHost,
    WrongVersion,
)
from kvtransfer.host import is_of_this_machine
from kvtransfer.protocol import KvSender, Transport
from scheduling.kv_export import KvExport

# Bytes per second of a new connection, or None where the pool cannot be measured.
# Raises: TransferError where the connection is not to be used.
Measure: TypeAlias = Callable[[KvSender, KvExport], float | None]

# They speak against one way; what is wrong with the peer itself is something else.
_CLOSED: Final = (
    PeerGone,
    ExportUnavailable,
    WrongHost,
    WrongVersion,
    LinkBroken,
    PathTooSlow,
    DeviceFailed,
)


@dataclass(frozen=True, slots=True)
class ChosenPath:
    """A connection, by which transport it goes, and what spoke against the better ones."""

    transport: str
    sender: KvSender
    reason: str
    # What of this reason someone could mend: the better ways that should have worked.
    lost_ways: tuple[str, ...] = ()
    # None where the pool cannot be measured.
    bytes_per_s: float | None = None
    # Ways that only the sender was told to use, and those that only the owner of the pool was.
    not_offered: tuple[str, ...] = ()
    not_tried: tuple[str, ...] = ()


def unmeasured(sender: KvSender, export: KvExport) -> float | None:
    """Takes every connection as it is."""
    return None


def connect_best(
    transports: Mapping[str, Transport],
    export: KvExport,
    *,
    sender_id: str,
    block_bytes: int,
    measure: Measure = unmeasured,
) -> ChosenPath:
    """Connect by the first transport, in the order of the mapping, that leads there.

    A way that does not work is passed over, also one on which the peer does not answer: a firewall
    closes one port and not the next. Raises: StaleIncarnation, LayoutMismatch of the peer, at once;
    PeerGone where every way that was tried says so; PathTooSlow where `measure` refused one;
    ExportUnavailable, WrongHost, WrongVersion, LinkBroken; LayoutMismatch where there was none to
    try.
    """
    ways = export.by_transport()
    passed_over: list[str] = []
    lost_ways: list[str] = []
    failures: list[TransferError] = []
    for name, transport in transports.items():
        way = ways.get(name)
        problem = "not offered" if way is None else transport.can_reach(way)
        if way is None or problem is not None:
            passed_over.append(f"{name}: {problem}")
            if way is not None and is_of_this_machine(way.host):
                lost_ways.append(passed_over[-1])
            continue
        try:
            sender = transport.connect(way, sender_id=sender_id, block_bytes=block_bytes)
            bytes_per_s = _measured(sender, way, measure)
        except _CLOSED as failure:
            failures.append(failure)
            problem = failure.problem if isinstance(failure, PathTooSlow) else str(failure)
            passed_over.append(f"{name}: {problem}")
            lost_ways.append(passed_over[-1])
            continue
        reason = "; ".join(passed_over) or "first choice"
        return ChosenPath(
            name,
            sender,
            reason,
            tuple(lost_ways),
            bytes_per_s,
            not_offered=tuple(own for own in transports if own not in ways),
            not_tried=tuple(offered for offered in ways if offered not in transports),
        )
    if failures:
        raise _what_it_means(export, failures, passed_over)
    raise LayoutMismatch(
        f"worker {export.worker_id} offers {' and '.join(ways)}, which does not work from here "
        f"({'; '.join(passed_over)}); give both a common entry in --transports"
    )


def _measured(sender: KvSender, way: KvExport, measure: Measure) -> float | None:
    try:
        return measure(sender, way)
    except BaseException:
        sender.close()
        raise


def _what_it_means(
    export: KvExport, failures: list[TransferError], passed_over: list[str]
) -> TransferError:
    """No way is left. That the peer is gone gives all its jobs up, so nothing may speak against."""
    if len(failures) == 1 or all(isinstance(failure, PeerGone) for failure in failures):
        return failures[0]
    problem = "; ".join(passed_over)
    if any(isinstance(failure, PathTooSlow) for failure in failures):
        return PathTooSlow(export.worker_id, problem)
    return ExportUnavailable(
        f"no way to worker {export.worker_id} works ({problem})",
        "mend one of them, or give both workers another common entry in --transports",
    )
