"""Two releases that would misread one another say so when they meet, and never misread."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from kvtransfer import tcp_frames as frames
from kvtransfer.batches import TaggedBlocks
from kvtransfer.choice import connect_best
from kvtransfer.errors import WrongVersion
from kvtransfer.group_transport import GroupTransport
from kvtransfer.process_group import Gloo
from kvtransfer.protocol import Transport
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import PATIENCE_S, next_incarnation
from scheduling.kv_export import KvExport

BLOCK_BYTES = 64
NEWER = frames.VERSION + 1
# Of what the present version writes. Where this test fails, a frame has changed: raise VERSION, and
# then this.
VERSION, WRITTEN = 2, "7cb39ba632957595"


def gloo() -> Transport:
    return GroupTransport(Gloo())


@contextlib.contextmanager
def receiver_of_another_version(export: KvExport) -> Iterator[KvExport]:
    """Whoever says hello there hears a welcome of the next version."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)

        def welcome() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(frames.MAX_HELLO_BYTES)
                connection.sendall(as_of_version(NEWER, frames.pack_welcome))

        thread = threading.Thread(target=welcome, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        yield replace(export, address=f"127.0.0.1:{port}")
        thread.join(PATIENCE_S)


def as_of_version(version: int, pack: Callable[[frames.Welcome, int], bytes]) -> bytes:
    """A welcome with another number in it, and a checksum that fits."""
    body = bytearray(pack(frames.Welcome.COME_IN, 1)[:-8])
    body[8:10] = version.to_bytes(2, "little")
    return frames._sealed(bytes(body))


@pytest.mark.parametrize("make", [TcpTransport, gloo], ids=["tcp", "gloo"])
def test_a_sender_that_meets_a_receiver_of_another_version_names_both(
    make: Callable[[], Transport],
) -> None:
    transport = make()
    receiver = transport.create_receiver(4, BLOCK_BYTES, "decode-0", next_incarnation())
    export = receiver.export()
    receiver.close()
    with (
        receiver_of_another_version(export) as other,
        pytest.raises(
            WrongVersion, match=f"version {NEWER}.*this worker {frames.VERSION}; run one"
        ),
    ):
        connect_best({transport.name: transport}, other, sender_id="p", block_bytes=BLOCK_BYTES)


def test_what_is_written_has_not_changed_since_its_version_was_raised() -> None:
    none = np.zeros(0, np.int64)
    blocks = TaggedBlocks(
        np.array([3, 1], np.int64), np.array([7, 9], np.uint64), none, none.astype(np.uint64)
    )
    token = b"t" * frames.TOKEN_BYTES
    written = [
        frames.pack_hello(frames.Hello("decode-0", 2, "prefill-0#1", 4, 64, token)),
        frames.pack_welcome(frames.Welcome.FULL, 2),
        frames.pack_memory(1 << 40, b"m"),
        frames.pack_meeting(frames.Meeting(1 << 20, b"s" * frames.MEETING_SECRET_BYTES)),
        frames.pack_entry("key", b"value"),
        frames.pack_batch(5, "r/0", blocks),
        frames.pack_answer(frames.Answer(5, frames.Verdict.STALE, 3, 8)),
    ]
    digest = hashlib.sha256(b"".join(written)).hexdigest()[: len(WRITTEN)]
    assert (frames.VERSION, digest) == (VERSION, WRITTEN)
