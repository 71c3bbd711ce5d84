"""What the answers of a router may take of its memory together, and whose make room.

Counted are all logs that somebody may still read: of running requests, of finished ones that are
kept for replay, and of those that are forgotten while somebody still reads them. Where they are too
much, what can be had again goes first; then the answer of which most is unread.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

# Of what all may take; so much is freed at a time.
_FREED_FRACTION = 1 / 16
# Logs of this size and more are told of when they are gone.
_LARGE_BYTES = 1024 * 1024


class CountedStream(Protocol):
    """A log of one request, as far as its memory goes."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, as an upper bound."""

    def drop_sent(self, num_left_bytes: int) -> None:
        """Let go of what was sent, oldest first, until so much is left."""


Stream = TypeVar("Stream", bound=CountedStream)


class StreamMemory(Generic[Stream]):
    """Counts; used from the event loop only."""

    def __init__(
        self, max_bytes: int | None = None, on_freed: Callable[[int], None] = lambda _: None
    ) -> None:
        """Without `max_bytes` there is no bound; `on_freed` hears of large logs that are gone."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._on_freed = on_freed
        # In the order in which they began.
        self._streams: dict[Stream, None] = {}

    @property
    def is_too_full(self) -> bool:
        """Whether somebody must make room."""
        return self.max_bytes is not None and self.num_bytes > self.max_bytes

    @property
    def num_wanted_bytes(self) -> int:
        """How much is to be left where room is made, so that it need not be made at every turn."""
        assert self.max_bytes is not None
        return int(self.max_bytes * (1 - _FREED_FRACTION))

    def count(self, stream: Stream) -> None:
        """A log begins."""
        if stream not in self._streams:
            self._streams[stream] = None
            self.num_bytes += stream.num_bytes

    def changed(self, stream: Stream, num_more_bytes: int) -> None:
        """It takes so much more, or less."""
        if stream in self._streams:
            self.num_bytes += num_more_bytes
            if num_more_bytes <= -_LARGE_BYTES:
                self._on_freed(-num_more_bytes)

    def let_go(self, stream: Stream) -> None:
        """Nobody can read it any more; harmless when repeated."""
        if stream in self._streams:
            self.changed(stream, -stream.num_bytes)
            del self._streams[stream]

    def drop_sent(self) -> None:
        """Drop what was sent, of the largest first, until there is room or nothing is left of it.

        Their readers lose nothing; who attaches again may have to be told less, or by computing.
        """
        for stream in self._largest_first():
            missing_bytes = self.num_bytes - self.num_wanted_bytes
            if missing_bytes <= 0:
                return
            stream.drop_sent(stream.num_bytes - missing_bytes)

    def largest(self) -> list[Stream]:
        """Those that take most, until there would be room without them."""
        chosen: list[Stream] = []
        missing_bytes = self.num_bytes - self.num_wanted_bytes
        for stream in self._largest_first():
            if missing_bytes <= 0:
                break
            chosen.append(stream)
            missing_bytes -= stream.num_bytes
        return chosen

    def check_invariants(self) -> None:
        """Raise AssertionError unless the sum is that of all."""
        assert self.num_bytes == sum(stream.num_bytes for stream in self._streams)

    def _largest_first(self) -> list[Stream]:
        return sorted(self._streams, key=_num_bytes, reverse=True)


def _num_bytes(stream: CountedStream) -> int:
    return stream.num_bytes
