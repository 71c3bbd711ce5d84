"""One connection as a blocking stream that never waits for ever.

A call into the kernel moves as much as there is, without the interpreter lock, and comes back
after a slice of time at the latest; between slices the owner decides whether to go on.
"""

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

# Asked after every slice that did not finish the job; raises to give up.
Patience: TypeAlias = Callable[[], None]

# How late a cancel or a deadline may be noticed on a stalled connection.
_SLICE_S: Final = 0.1
# IOV_MAX of Linux.
_MAX_BUFFERS: Final = 1024
_TIMEVAL = struct.Struct("@ll")
# A silent peer is probed after this, and given up after the other.
_KEEPALIVE_IDLE_S: Final = 5
_KEEPALIVE_INTERVAL_S: Final = 2
_KEEPALIVE_COUNT: Final = 3
_DEAD_AFTER_S: Final = 10


class ConnectionLost(Exception):
    """The connection ended or broke; what was on its way is lost."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; connect again")
        self.problem = problem


class Stream:
    """A connected socket, used by one thread; `abort` may come from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        _configure(connection)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def wait_readable(self) -> None:
        """Wait as long as it takes: the kernel's probes end the wait for a dead peer."""
        self._poll.poll()

    def has_news(self, timeout_s: float = 0.0) -> bool:
        """Whether there is anything to read, an end of the stream included."""
        return bool(self._poll.poll(timeout_s * 1000))

    def receive(self, num_bytes: int, patience: Patience) -> bytes:
        """Exactly so many bytes. Raises: ConnectionLost; what `patience` raises."""
        data = bytearray(num_bytes)
        self.receive_into([memoryview(data)], patience)
        return bytes(data)

    def receive_into(self, buffers: Sequence[memoryview], patience: Patience) -> None:
        """Fill all buffers in order, straight from the kernel."""
        for start in range(0, len(buffers), _MAX_BUFFERS):
            rest = list(buffers[start : start + _MAX_BUFFERS])
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

    def send(self, buffers: Sequence[memoryview], patience: Patience) -> None:
        """Hand all buffers to the kernel, which keeps a copy of its own."""
        for start in range(0, len(buffers), _MAX_BUFFERS):
            rest = list(buffers[start : start + _MAX_BUFFERS])
            while rest:
                try:
                    count = self._socket.sendmsg(rest, (), socket.MSG_NOSIGNAL)
                except (BlockingIOError, InterruptedError):
                    patience()
                    continue
                except OSError as error:
                    raise ConnectionLost(error.strerror or str(error)) from error
                rest = _after(rest, count)
                if rest:
                    patience()

    def finish(self, timeout_s: float) -> None:
        """Say that nothing more comes, and wait a moment for the peer to have noticed."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._poll.poll(timeout_s * 1000)
        except OSError:
            pass  # it is gone already
        self._socket.close()

    def abort(self) -> None:
        """Wake whoever waits here; nothing is sent or received any more."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Close, and throw away what the kernel has not sent yet."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


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
