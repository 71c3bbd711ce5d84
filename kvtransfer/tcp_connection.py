"""A sender's connection that is made anew when it has broken, and what its loss means."""

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from kvtransfer.errors import LinkBroken, TransferError
from kvtransfer.tcp_stream import Stream
from runtime.logging import get_logger
from scheduling.kv_export import KvExport

log = get_logger()

_GOODBYE_S: Final = 0.5


class Line(Protocol):
    """What is between a sender and a receiver as long as one connection lasts."""

    @property
    def stream(self) -> Stream: ...

    def close(self) -> None:
        """Let go of everything but the stream."""
        ...


L = TypeVar("L", bound=Line)


class Connection(Generic[L]):
    """Used by one thread. `dial` makes a line, or says why there is nobody to talk to."""

    def __init__(self, export: KvExport, dial: Callable[[], L]) -> None:
        self._export = export
        self._dial = dial
        self._is_closed = False
        self._line: L | None = dial()

    def line(self) -> L:
        """The present line, or a new one. Raises: PeerGone, StaleIncarnation."""
        self.check()
        if self._line is None:
            self._line = self._dial()
        return self._line

    def check(self) -> None:
        """See `KvSender.check`."""
        if self._is_closed:
            raise RuntimeError("this connection is closed")
        # Between pushes the receiver says nothing: what is there to read is an end.
        if self._line is not None and self._line.stream.has_news():
            self.drop()
            self._line = self._dial()

    def drop(self) -> None:
        """Give the line up, whatever is on its way; afterwards nothing of the source is read."""
        line, self._line = self._line, None
        if line is None:
            return
        if not line.stream.reset():
            log.error(
                "kv_blocks_still_read",
                worker_id=self._export.worker_id,
                hint="a network device holds packets for minutes; set kv_tcp_zerocopy to never",
            )
        line.close()

    def loss(self, problem: str) -> TransferError:
        """The line broke: whether the receiver is gone too. Makes a new one if it is not."""
        self.drop()
        try:
            self._line = self._dial()
        except TransferError as error:
            return error
        return LinkBroken(self._export.worker_id, problem)

    def close(self) -> None:
        """Say goodbye, so that the receiver has a free place when this returns. Twice is fine."""
        self._is_closed = True
        line, self._line = self._line, None
        if line is not None:
            line.close()
            line.stream.finish(_GOODBYE_S)
