"""One end of the way between rank 0 and another rank of a worker: whole messages over a socket."""

import pickle
import select
import socket
import struct
from contextlib import suppress
from typing import Any

from engine.runner import RankLost
from worker.rank_messages import MAX_MESSAGE_BYTES, RankMessage, decode, encode

_LENGTH = struct.Struct("!Q")


class RankChannel:
    """Used by one thread at a time. The socket is this object's."""

    def __init__(self, end: socket.socket, timeout_s: float) -> None:
        """`timeout_s`: how long the other side may take to take or to finish a message."""
        self._socket = end
        self._socket.settimeout(timeout_s)
        self._is_readable = select.poll()
        self._is_readable.register(end, select.POLLIN)

    def fileno(self) -> int:
        """Of the socket, for those who watch whether the other side lives."""
        return self._socket.fileno()

    def send(self, message: RankMessage) -> None:
        """Raises: RankLost when the other side is gone or does not read."""
        data = encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise RankLost(f"a message of {len(data)} bytes is too long for the other ranks")
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise RankLost(f"the other rank does not take messages ({error})") from error

    def receive(self, timeout_s: float | None) -> Any:
        """The next message, or None when none began to come in time; without a time, wait.

        Raises: RankLost when the other side is gone, or what came is no message.
        """
        if not self._is_readable.poll(None if timeout_s is None else 1000 * timeout_s):
            return None
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise RankLost(f"the other rank sent a message of {length} bytes")
            return decode(self._read(length))
        except (OSError, pickle.UnpicklingError) as error:
            raise RankLost(f"the other rank's message did not come ({error})") from error

    def close(self) -> None:
        """The other side notices at once, and so does a thread that waits here."""
        with suppress(OSError):
            # Refused where the other side is gone.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._socket.recv(min(length - len(data), 1 << 20))
            if not piece:
                raise RankLost("the other rank has ended")
            data += piece
        return bytes(data)
