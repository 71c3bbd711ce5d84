"""One connection as a blocking stream that never waits for ever.

A call into the kernel moves as much as there is, without the interpreter lock, and comes back
after a slice of time at the latest; between slices the owner decides whether to go on.
"""

import contextlib
import ipaddress
import select
import socket
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, TypeAlias

from kvtransfer.zerocopy import MAX_BUFFERS, PinnedSends, ZeroCopy, cut_sends
from kvtransfer.zerocopy_socket import ZeroCopySocket
from runtime.clock import MonotonicClock

# Asked after every slice that did not finish the job; raises to give up.
Patience: TypeAlias = Callable[[], None]

# How late a cancel or a deadline may be noticed on a stalled connection.
_SLICE_S: Final = 0.1
_TIMEVAL = struct.Struct("@ll")
# A silent peer is probed after this, and given up after the other.
_KEEPALIVE_IDLE_S: Final = 5
_KEEPALIVE_INTERVAL_S: Final = 2
_KEEPALIVE_COUNT: Final = 3
_DEAD_AFTER_S: Final = 10
# How long a device may go on reading what a connection sent that was reset: longer than the other
# end keeps such a connection (docs/decisions/kv-over-tcp.md).
_RELEASE_TIMEOUT_S: Final = 60.0


class ConnectionLost(Exception):
    """The connection ended or broke; what was on its way is lost."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; connect again")
        self.problem = problem


class Stream:
    """A connected socket, used by one thread; `abort` may come from any."""

    def __init__(self, connection: socket.socket, zerocopy: ZeroCopy = ZeroCopy.NEVER) -> None:
        self._socket = connection
        _configure(connection)
        self._zerocopy = ZeroCopySocket(connection, zerocopy)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._end = select.poll()
        self._end.register(connection, select.POLLRDHUP)

    @property
    def own_host(self) -> str:
        """The address of this machine that the peer is reached from."""
        return _plain_host(self._socket.getsockname()[0])

    @property
    def peer_host(self) -> str:
        """The address that the peer is reached at. Raises: ConnectionLost."""
        try:
            return _plain_host(self._socket.getpeername()[0])
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from error

    def wait_readable(self) -> None:
        """Wait as long as it takes: the kernel's probes end the wait for a dead peer."""
        self._poll.poll()

    @property
    def sends_in_place(self) -> PinnedSends:
        """What became, until now, of the blocks that were sent without a copy."""
        self._zerocopy.collect()
        return self._zerocopy.sends

    def has_news(self, timeout_s: float = 0.0) -> bool:
        """Whether there is anything to read, an end of the stream included.

        May be False before the time is over where the kernel released blocks meanwhile.
        """
        events = [events for _, events in self._poll.poll(timeout_s * 1000)]
        if events == [select.POLLERR]:
            # The error queue is no news to the reader; where it is empty, the connection failed.
            return not self._zerocopy.collect()
        return bool(events)

    def has_ended(self) -> bool:
        """Whether the peer said that nothing more comes, what is unread notwithstanding."""
        return bool(self._end.poll(0))

    def receive(self, num_bytes: int, patience: Patience) -> bytes:
        """Exactly so many bytes. Raises: ConnectionLost; what `patience` raises."""
        data = bytearray(num_bytes)
        self.receive_into([memoryview(data)], patience)
        return bytes(data)

    def receive_into(self, buffers: Sequence[memoryview], patience: Patience) -> None:
        """Fill all buffers in order, straight from the kernel."""
        for start in range(0, len(buffers), MAX_BUFFERS):
            rest = list(buffers[start : start + MAX_BUFFERS])
            while rest:
                try:
                    count = self._socket.recvmsg_into(rest, 0, socket.MSG_WAITALL)[0]
                except (BlockingIOError, InterruptedError):
                    patience()
                    continue
                except OSError as error:
                    raise ConnectionLost(error.strerror or str(error)) from error
                if not count:
                    raise ConnectionLost("the peer closed it")
                rest = _after(rest, count)
                if rest:
                    patience()

    def send(
        self, buffers: Sequence[memoryview], patience: Patience, *, is_more_to_come: bool = False
    ) -> None:
        """Hand all buffers to the kernel, which keeps a copy of its own."""
        flags = socket.MSG_NOSIGNAL | (socket.MSG_MORE if is_more_to_come else 0)
        for start in range(0, len(buffers), MAX_BUFFERS):
            part = list(buffers[start : start + MAX_BUFFERS])
            _hand_over(part, lambda rest: self._socket.sendmsg(rest, (), flags), patience)

    def send_blocks(
        self, frame: memoryview, blocks: Sequence[memoryview], patience: Patience
    ) -> None:
        """Hand over a frame, of which the kernel keeps a copy, and the blocks that follow it.

        Where the kernel sends without a copy it reads the blocks in place until the peer has
        answered what they belong to, or until `reset` returns: the caller keeps them as they are.
        """
        if not self._may_send_in_place(blocks):
            self.send([frame, *blocks], patience)
            return
        self.send([frame], patience, is_more_to_come=True)
        pieces = cut_sends(blocks)
        for piece in pieces:
            if not self._may_send_in_place(piece):
                # All that is left at once.
                self.send([*piece, *chain.from_iterable(pieces)], patience)
                return
            _hand_over(piece, self._zerocopy.send, patience)

    def finish(self, timeout_s: float) -> None:
        """Say that nothing more comes, and wait a moment for the peer to have noticed."""
        clock = MonotonicClock()
        until_s = clock.now() + timeout_s
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while not self.has_news(max(0.0, until_s - clock.now())) and clock.now() < until_s:
                pass  # only blocks were released
        except OSError:
            pass  # it is gone already
        self._socket.close()

    def abort(self) -> None:
        """Wake whoever waits here; nothing is sent or received any more."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def reset(self, release_timeout_s: float = _RELEASE_TIMEOUT_S) -> bool:
        """Close, and throw away what the kernel has not sent yet.

        False: a device of this machine still reads blocks that were sent in place.
        """
        is_released = self._zerocopy.break_off(release_timeout_s, MonotonicClock())
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        return is_released

    def close(self) -> None:
        self._socket.close()

    def _may_send_in_place(self, buffers: Sequence[memoryview]) -> bool:
        return self.sends_in_place.may_send(sum(map(len, buffers)))


def _hand_over(
    rest: list[memoryview], take: Callable[[list[memoryview]], int], patience: Patience
) -> None:
    while rest:
        try:
            count = take(rest)
        except (BlockingIOError, InterruptedError):
            patience()
            continue
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from error
        rest = _after(rest, count)
        if rest:
            patience()


def _plain_host(host: str) -> str:
    """An address without the form that one of version 4 has on a socket of version 6."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return host if mapped is None else str(mapped)


def _configure(connection: socket.socket) -> None:
    connection.setblocking(True)
    timeval = _TIMEVAL.pack(int(_SLICE_S), int(_SLICE_S % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, timeval)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_COUNT),
        (socket.TCP_USER_TIMEOUT, _DEAD_AFTER_S * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers once `count` bytes of them are done."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
