"""Just enough of HTTP/2 to call one gRPC method many times, at a few microseconds a message.

A load generator on grpc.aio costs about as much as the router that it should saturate. Here one
connection carries many streams, headers are sent as one ready-made block, and those that come
back are never decoded: whether a call ended well shows in its messages. RFC 9113, RFC 7541.
"""

import socket
import struct
from collections.abc import Callable

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_INITIAL_WINDOW_SIZE = 4
_WINDOW_BYTES = 2**31 - 1
# The window of the connection is opened again after so many bytes.
_REFILL_BYTES = 2**30
_READ_BYTES = 1 << 18
_HEADER = struct.Struct(">BHBBI")
_MESSAGE = struct.Struct(">BI")


class ConnectionBroke(Exception):
    """The server closed the connection or does not speak gRPC over plain HTTP/2."""


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    size = len(payload)
    return _HEADER.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table, neither part compressed."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Connection:
    """One TCP connection. `on_message(stream_id, message)` and `on_end(stream_id)` are called
    from `receive`; a stream that was reset ends like any other."""

    def __init__(
        self,
        port: int,
        path: str,
        on_message: Callable[[int, bytes], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._on_message, self._on_end = on_message, on_end
        self._head = b"\x83\x86" + b"".join(
            [
                _literal(b":path", path.encode()),
                _literal(b":authority", f"127.0.0.1:{port}".encode()),
                _literal(b"te", b"trailers"),
                _literal(b"content-type", b"application/grpc"),
                _literal(b"grpc-timeout", b"600S"),
            ]
        )
        self._next_stream_id = 1
        self._unparsed = b""
        # The beginnings of messages that came in several frames.
        self._parts: dict[int, bytes] = {}
        self._num_unacknowledged = 0
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW_BYTES)
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + self._opened_window(_WINDOW_BYTES - 65535)
        )

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def call(self, request: bytes, is_last: bool = True) -> int:
        """Open a stream with its first request, by default its only one; its id."""
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        message = _MESSAGE.pack(0, len(request)) + request
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, stream_id, self._head)
            + _frame(_DATA, _END_STREAM if is_last else 0, stream_id, message)
        )
        return stream_id

    def send(self, stream_id: int, request: bytes) -> None:
        """One more request on an open stream; small ones only, windows are not minded."""
        message = _MESSAGE.pack(0, len(request)) + request
        self._socket.sendall(_frame(_DATA, 0, stream_id, message))

    def close(self) -> None:
        """Drop all streams."""
        self._socket.close()

    def receive(self) -> None:
        """Read once and deliver what is complete. Raises: ConnectionBroke."""
        received = self._socket.recv(_READ_BYTES)
        if not received:
            raise ConnectionBroke("the router closed the connection; see its log")
        data = self._unparsed + received if self._unparsed else received
        position, size = 0, len(data)
        while size - position >= 9:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, position)
            end = position + 9 + (high << 16 | low)
            if end > size:
                break
            if kind == _DATA:
                self._data(stream_id, data, position + 9, end)
            elif kind != _HEADERS:
                self._control(kind, flags, stream_id, data[position + 9 : end])
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                self._parts.pop(stream_id, None)
                self._on_end(stream_id)
            position = end
        self._unparsed = data[position:]

    def _data(self, stream_id: int, data: bytes, start: int, end: int) -> None:
        self._num_unacknowledged += end - start
        if self._num_unacknowledged >= _REFILL_BYTES:
            self._socket.sendall(self._opened_window(self._num_unacknowledged))
            self._num_unacknowledged = 0
        part = self._parts.pop(stream_id, None)
        if part is not None:
            data = part + data[start:end]
            start, end = 0, len(data)
        while end - start >= 5:
            _, num_bytes = _MESSAGE.unpack_from(data, start)
            if start + 5 + num_bytes > end:
                break
            self._on_message(stream_id, data[start + 5 : start + 5 + num_bytes])
            start += 5 + num_bytes
        if start < end:
            self._parts[stream_id] = data[start:end]

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _RST:
            self._parts.pop(stream_id, None)
            self._on_end(stream_id)
        elif kind == _GOAWAY:
            raise ConnectionBroke("the router ended the connection; see its log")

    def _opened_window(self, num_bytes: int) -> bytes:
        return _frame(_WINDOW, 0, 0, struct.pack(">I", num_bytes))
