"""For tests: a network that delays, splits, stalls and cuts; a door that says too much."""

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from types import TracebackType

from kvtransfer.batches import plain_copy
from kvtransfer.doors import ServedPool
from kvtransfer.network_transport import NetworkKind, NetworkTransport
from kvtransfer.tcp_door import NAME, DoorKind, DoorSettings
from kvtransfer.tcp_link import Arrivals, SocketArrivals
from kvtransfer.tcp_sender import TcpSender
from kvtransfer.tcp_stream import Stream

_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to bytes on their way to the receiver."""

    # Passed on in pieces of at most so many bytes, each so late.
    piece_bytes: int = _READ_BYTES
    delay_s: float = 0.0
    # After so many bytes in all: nothing passes any more, or both ends are reset.
    stall_after_bytes: int | None = None
    cut_after_bytes: int | None = None


class FakeNetwork:
    """A port that leads to `address` through the weather; use it as a context."""

    def __init__(self, address: str, weather: Weather) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        # May be changed at any time; counts are of all bytes since the start.
        self.weather = weather
        self.num_bytes = 0
        self.has_stalled = threading.Event()
        self._may_flow = threading.Event()
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> "FakeNetwork":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._may_flow.set()
        _shut(self._listener)
        for known in list(self._sockets):
            _shut(known)
        for thread in list(self._threads):
            thread.join(10.0)
        for known in [self._listener, *self._sockets]:
            known.close()

    def flow_again(self) -> None:
        """End a stall; what was held back arrives."""
        self.weather = Weather()
        self._may_flow.set()

    def _start(self, target: "object", *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection(self._target, 5.0)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            self._sockets.append(far)
            self._start(self._forward, near, far)
            self._start(self._backward, far, near)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(self.weather.piece_bytes):
                weather = self.weather
                if weather.delay_s:
                    self._ended.wait(weather.delay_s)
                cut, stall = weather.cut_after_bytes, weather.stall_after_bytes
                if cut is not None and self.num_bytes + len(data) > cut:
                    far.sendall(data[: cut - self.num_bytes])
                    self.weather = Weather()
                    _reset(near)
                    _reset(far)
                    return
                if stall is not None and self.num_bytes + len(data) > stall:
                    self.has_stalled.set()
                    self._may_flow.wait()
                far.sendall(data)
                self.num_bytes += len(data)
        _shut(far)

    def _backward(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_READ_BYTES):
                near.sendall(data)
        _shut(near)


def talkative_transport(num_greeting_bytes: int, door: DoorSettings) -> NetworkTransport:
    """TCP whose door greets with more than the kernel keeps for a sender that does not read."""

    class LongGreeting(SocketArrivals):
        def greeting(self) -> bytes:
            return bytes(num_greeting_bytes)

    def make(stream: Stream, pool: ServedPool) -> Arrivals:
        return LongGreeting(stream, pool, plain_copy)

    return NetworkTransport(NetworkKind(NAME, lambda _: DoorKind(NAME, make), TcpSender), door)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
