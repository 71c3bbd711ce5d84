"""Where TCP connections come in: how long and how many strangers may stand there."""

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from kvtransfer.tcp_frames import (
    HELLO_HEAD_BYTES,
    TOKEN_BYTES,
    VERSION,
    WELCOME_BYTES,
    Hello,
    Welcome,
    pack_hello,
    read_welcome,
)
from kvtransfer.tcp_reception import Reception
from kvtransfer.testing import PATIENCE_S
from runtime.clock import ManualClock

HELLO = Hello("decode-0", 1, "prefill-0#1", 4, 64, b"t" * TOKEN_BYTES)


@dataclass
class Desk:
    """A reception on a thread of its own, with a clock that the test moves."""

    address: tuple[str, int]
    clock: ManualClock
    admitted: "queue.Queue[Hello]"
    open_sockets: ExitStack = field(default_factory=ExitStack)

    def dial(self, first: bytes = b"") -> socket.socket:
        connection = self.open_sockets.enter_context(
            socket.create_connection(self.address, PATIENCE_S)
        )
        connection.sendall(first)
        return connection

    def let_one_in(self) -> None:
        """Also shows that all who dialled before have been seen, and the clock as it is now."""
        self.dial(pack_hello(HELLO))
        assert self.admitted.get(timeout=PATIENCE_S) == HELLO


@pytest.fixture
def desk() -> Iterator[Desk]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    admitted: queue.Queue[Hello] = queue.Queue()

    def admit(connection: socket.socket, hello: Hello) -> Welcome:
        admitted.put(hello)
        return Welcome.FULL  # the reception says so and hangs up

    clock = ManualClock()
    address = listener.getsockname()
    reception = Reception(listener, 1, admit, clock)
    thread = threading.Thread(target=reception.run)
    thread.start()
    place = Desk(address, clock, admitted)
    try:
        with place.open_sockets:
            yield place
    finally:
        reception.stop()
        thread.join(PATIENCE_S)


def is_connected(connection: socket.socket) -> bool:
    """Whether the other end has not hung up so far; it never says a word."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    finally:
        connection.settimeout(PATIENCE_S)


@pytest.mark.parametrize("begin", [b"", pack_hello(HELLO)[:-1]])
def test_who_has_not_said_a_whole_hello_after_five_seconds_is_dropped(
    desk: Desk, begin: bytes
) -> None:
    slow = desk.dial(begin)
    desk.let_one_in()
    desk.clock.advance(4.9)
    desk.let_one_in()
    assert is_connected(slow)
    desk.clock.advance(0.2)
    assert slow.recv(1) == b""


@pytest.mark.parametrize("num_bytes", [None, HELLO_HEAD_BYTES], ids=["whole", "its head so far"])
def test_a_sender_of_another_version_is_told_so_and_not_let_in(
    desk: Desk, num_bytes: int | None
) -> None:
    hello = bytearray(pack_hello(HELLO))
    hello[8:10] = (VERSION + 1).to_bytes(2, "little")
    newer = desk.dial(bytes(hello)[:num_bytes])
    frame = b""
    while len(frame) < WELCOME_BYTES:
        part = newer.recv(WELCOME_BYTES - len(frame))
        assert part, "it left without a word"
        frame += part
    assert read_welcome(frame) == (Welcome.OTHER_VERSION, 1)
    assert newer.recv(1) == b""
    assert desk.admitted.empty()


def test_of_those_that_say_no_hello_the_oldest_leaves_when_a_65th_comes(desk: Desk) -> None:
    silent = [desk.dial() for _ in range(64)]
    last = desk.dial()
    assert silent[0].recv(1) == b""
    assert all(is_connected(connection) for connection in [*silent[1:], last])
    desk.let_one_in()  # the next oldest makes room for it
    assert silent[1].recv(1) == b""
    assert all(is_connected(connection) for connection in [*silent[2:], last])
