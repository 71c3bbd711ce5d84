"""Which way into a pool a sender takes: the first of its own that works, and why not the others."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvtransfer.errors import ExportUnavailable, LayoutMismatch, WrongHost
from kvtransfer.protocol import KvSender, Transport
from scheduling.messages import KvExport


@dataclass(frozen=True, slots=True)
class ChosenPath:
    """A connection, by which transport it goes, and what spoke against the better ones."""

    transport: str
    sender: KvSender
    reason: str


def connect_best(
    transports: Mapping[str, Transport], export: KvExport, *, sender_id: str, block_bytes: int
) -> ChosenPath:
    """Connect by the first transport, in the order of the mapping, that the pool's host allows.

    Raises: LayoutMismatch where nothing is left; what the last connect raised.
    """
    ways = export.by_transport()
    passed_over: list[str] = []
    error: ExportUnavailable | WrongHost | None = None
    for name, transport in transports.items():
        way = ways.get(name)
        problem = "not offered" if way is None else transport.can_reach(way)
        if way is None or problem is not None:
            passed_over.append(f"{name}: {problem}")
            continue
        try:
            sender = transport.connect(way, sender_id=sender_id, block_bytes=block_bytes)
        except (ExportUnavailable, WrongHost) as failure:
            # This way is closed to us; what is wrong with the peer itself would be raised.
            error = failure
            passed_over.append(f"{name}: {failure}")
            continue
        return ChosenPath(name, sender, "; ".join(passed_over) or "first choice")
    if error is not None:
        raise error
    raise LayoutMismatch(
        f"worker {export.worker_id} offers {' and '.join(ways)}, which does not work from here "
        f"({'; '.join(passed_over)}); give both a common entry in --transports"
    )
