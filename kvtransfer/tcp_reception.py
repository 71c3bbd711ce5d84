"""Where connections come in: reads hellos, lets in who knows the token, drops everybody else."""

import contextlib
import select
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kvtransfer.tcp_frames import (
    MAX_HELLO_BYTES,
    FrameError,
    Hello,
    OtherVersion,
    Welcome,
    hello_bytes,
    pack_welcome,
    read_hello,
)
from runtime.clock import Clock
from runtime.logging import get_logger

log = get_logger()

# Connections whose hello is not complete; the oldest leaves when one more comes.
_MAX_PENDING: Final = 64
_HELLO_TIMEOUT_S: Final = 5.0
# Strangers are counted, and written down this often at most.
_LOG_INTERVAL_S: Final = 1.0
_PAUSE_S: Final = 0.2

# Takes the connection if its hello is welcome. None: a stranger, to be dropped without a word.
Admit = Callable[[socket.socket, Hello], Welcome | None]


@dataclass(slots=True)
class _Pending:
    connection: socket.socket
    peer: str
    until_s: float
    begin: bytearray = field(default_factory=bytearray)


class Reception:
    """A listening socket and one thread, which `run` occupies until `stop`."""

    def __init__(
        self, listener: socket.socket, incarnation: int, admit: Admit, clock: Clock
    ) -> None:
        self._listener = listener
        self._incarnation = incarnation
        self._admit = admit
        self._clock = clock
        listener.setblocking(False)
        self._wake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._pending: dict[int, _Pending] = {}
        self._num_strangers = 0
        self._logged_at_s = -_LOG_INTERVAL_S

    def stop(self) -> None:
        """End `run` soon; from any thread."""
        self._waker.send(b"x")

    def run(self) -> None:
        """Welcome senders."""
        try:
            while True:
                # Pending hellos have a deadline each; without one there is nothing to wait for.
                events = self._selector.select(_PAUSE_S if self._pending else None)
                for key, _ in events:
                    if key.fileobj is self._wake:
                        return
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fd in self._pending:  # not dropped a moment ago
                        self._read(self._pending[key.fd])
                self._drop_late()
        finally:
            for pending in list(self._pending.values()):
                self._forget(pending)
                pending.connection.close()
            self._selector.close()
            self._listener.close()
            self._wake.close()
            self._waker.close()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError as error:
            # Out of file descriptors, or it was reset already. The former lasts: breathe.
            log.warning("kv_accept_failed", error=str(error))
            self._drop_oldest()
            socket_wait(self._wake, _PAUSE_S)
            return
        connection.setblocking(False)
        if len(self._pending) >= _MAX_PENDING:
            self._drop_oldest()
        pending = _Pending(connection, str(address[0]), self._clock.now() + _HELLO_TIMEOUT_S)
        self._pending[connection.fileno()] = pending
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, pending: _Pending) -> None:
        """Read as far as the hello goes, and not a byte further: what follows is a batch."""
        try:
            missing = hello_bytes(bytes(pending.begin)) - len(pending.begin)
            part = pending.connection.recv(missing)
            if not part:
                raise FrameError("it left without a complete hello")
            pending.begin += part
            if hello_bytes(bytes(pending.begin)) == len(pending.begin):
                self._answer(pending, read_hello(bytes(pending.begin)))
        except BlockingIOError:
            return
        except OtherVersion as error:
            # Without it the sender could not tell another version from a worker that has left.
            with contextlib.suppress(OSError):
                # What is closed unread may take along what was sent.
                pending.connection.recv(MAX_HELLO_BYTES)
            with contextlib.suppress(OSError):
                pending.connection.send(pack_welcome(Welcome.OTHER_VERSION, self._incarnation))
            self._drop(pending, str(error))
        except (FrameError, OSError) as error:
            self._drop(pending, str(error))

    def _answer(self, pending: _Pending, hello: Hello) -> None:
        self._forget(pending)
        connection = pending.connection
        verdict = self._admit(connection, hello)
        if verdict is Welcome.COME_IN:
            return
        if verdict is None:
            self._count_stranger(pending.peer, "a hello with a wrong token")
        else:
            # It fits the empty buffer of a new connection.
            connection.send(pack_welcome(verdict, self._incarnation))
        connection.close()

    def _drop_late(self) -> None:
        now = self._clock.now()
        for pending in [p for p in self._pending.values() if p.until_s <= now]:
            self._drop(pending, "no complete hello in time")

    def _drop_oldest(self) -> None:
        if self._pending:
            self._drop(next(iter(self._pending.values())), "too many that say no hello")

    def _drop(self, pending: _Pending, problem: str) -> None:
        self._forget(pending)
        pending.connection.close()
        self._count_stranger(pending.peer, problem)

    def _forget(self, pending: _Pending) -> None:
        if self._pending.pop(pending.connection.fileno(), None) is not None:
            self._selector.unregister(pending.connection)

    def _count_stranger(self, peer: str, problem: str) -> None:
        self._num_strangers += 1
        now = self._clock.now()
        if now - self._logged_at_s >= _LOG_INTERVAL_S:
            self._logged_at_s = now
            log.warning(
                "kv_stranger_dropped",
                peer=peer,
                problem=problem,
                num_since_start=self._num_strangers,
            )


def socket_wait(waiting: socket.socket, timeout_s: float) -> None:
    """Wait for something to read, or for the time to pass."""
    # Needs no descriptor of its own: it is called when there are none left.
    poll = select.poll()
    poll.register(waiting, select.POLLIN)
    poll.poll(1000 * timeout_s)
