"""Sends without a copy over real sockets: on loopback the kernel copies, and says so."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog

from deploy.local.settings import ROOT
from kvtransfer.batches import PushSettings
from kvtransfer.errors import TransferCancelled
from kvtransfer.protocol import BlockMoves, KvReceiver
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_stream import Stream
from kvtransfer.testing import PATIENCE_S, patterned_pool
from kvtransfer.whole_pool_testing import wait_for
from kvtransfer.zerocopy import ZeroCopy
from kvtransfer.zerocopy_socket import ZeroCopySocket

BLOCK_BYTES, NUM_BLOCKS, SEED = 64 << 10, 64, 5
ALL = tuple(range(NUM_BLOCKS))
POOL_BYTES = NUM_BLOCKS * BLOCK_BYTES
# Pushes a pool twice to itself, and prints what it thinks of zero copy and whether all is right.
PUSH_TWICE = f"""
import sys
import structlog
from kvtransfer.protocol import BlockMoves
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import patterned_pool
n, size = {NUM_BLOCKS}, {BLOCK_BYTES}
with structlog.testing.capture_logs() as lines:
    transport = TcpTransport()
    receiver = transport.create_receiver(n, size, "decode-0", 1)
    pool = patterned_pool(n, size, {SEED})
    sender = transport.connect(receiver.export(), sender_id="prefill-0#1", block_bytes=size)
    for generation in (1, 2):
        receiver.buffer()[:] = bytes(n * size)
        receiver.expect(range(n), [generation] * n)
        moves = BlockMoves("r/0", tuple(range(n)), tuple(range(n)), (generation,) * n)
        sender.push(memoryview(pool), moves, timeout_s={PATIENCE_S})
        assert receiver.poll(range(n), [generation] * n).is_complete
        assert receiver.buffer() == memoryview(pool)
    sender.close()
    receiver.close()
print([line["verdict"] for line in lines if line["event"] == "kv_tcp_zerocopy"])
"""


def go_on() -> None:
    """As long as it takes."""


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), PATIENCE_S)
        far, _ = listener.accept()
    far.settimeout(PATIENCE_S)
    return near, far


@pytest.fixture
def make_ends() -> Iterator[Callable[[ZeroCopy], tuple[Stream, socket.socket]]]:
    sockets: list[socket.socket] = []

    def make(use: ZeroCopy) -> tuple[Stream, socket.socket]:
        near, far = connection()
        sockets.extend((near, far))
        return Stream(near, use), far

    yield make
    for known in sockets:
        known.close()


class Reader:
    """Takes all that comes until the end, on a thread of its own."""

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def all(self) -> bytes:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return b"".join(self._parts)

    def _read(self) -> None:
        while data := self._far.recv(1 << 20):
            self._parts.append(data)
        self._far.close()


def blocks_of(pool: bytearray) -> list[memoryview]:
    return [memoryview(pool)[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] for at in ALL]


@pytest.mark.parametrize("use", list(ZeroCopy))
def test_frames_and_blocks_arrive_in_order_however_they_are_sent(
    make_ends: Callable[[ZeroCopy], tuple[Stream, socket.socket]], use: ZeroCopy
) -> None:
    stream, far = make_ends(use)
    reader, pool = Reader(far), patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    for number in range(8):
        # Nobody but the kernel keeps the frame.
        stream.send_blocks(memoryview(bytes([number]) * 100), blocks_of(pool), go_on)
    stream.finish(PATIENCE_S)
    assert reader.all() == b"".join(bytes([number]) * 100 + pool for number in range(8))


def test_a_kernel_that_copies_is_asked_only_once(
    make_ends: Callable[[ZeroCopy], tuple[Stream, socket.socket]],
) -> None:
    stream, far = make_ends(ZeroCopy.AUTO)
    reader, pool = Reader(far), patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    stream.send_blocks(memoryview(b"frame"), blocks_of(pool), go_on)
    assert stream.sends_in_place.num_pending >= 1 or stream.sends_in_place.problem
    wait_for(lambda: not stream.has_news() and not stream.sends_in_place.num_pending)
    assert stream.sends_in_place.problem == "it copies all the same"
    stream.send_blocks(memoryview(b"frame"), blocks_of(pool), go_on)
    assert stream.sends_in_place.num_pending == 0
    stream.finish(PATIENCE_S)
    assert reader.all() == 2 * (b"frame" + pool)


def test_every_send_is_released_and_no_reader_takes_that_for_news(
    make_ends: Callable[[ZeroCopy], tuple[Stream, socket.socket]],
) -> None:
    stream, far = make_ends(ZeroCopy.INSIST)
    reader, pool = Reader(far), patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    for _ in range(4):
        stream.send_blocks(memoryview(b"frame"), blocks_of(pool), go_on)
    wait_for(lambda: not stream.has_news() and not stream.sends_in_place.num_pending)
    assert stream.sends_in_place.problem is None
    stream.sends_in_place.check_invariants()
    stream.finish(PATIENCE_S)
    assert reader.all() == 4 * (b"frame" + pool)


def test_after_a_reset_nothing_is_read_from_the_source_and_the_peer_knows(
    make_ends: Callable[[ZeroCopy], tuple[Stream, socket.socket]],
) -> None:
    class EnoughError(Exception):
        """The peer reads nothing, and so the kernel takes no more."""

    def give_up() -> None:
        raise EnoughError

    stream, far = make_ends(ZeroCopy.INSIST)
    pool = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    sent = bytes(pool)
    frame, blocks = memoryview(b""), blocks_of(pool)

    def send_for_ever() -> None:
        while True:
            stream.send_blocks(frame, blocks, give_up)

    with pytest.raises(EnoughError):
        send_for_ever()
    assert stream.sends_in_place.num_pending
    assert stream.reset()
    assert stream.sends_in_place.num_pending == 0
    pool[:] = bytes(len(pool))
    received = bytearray()

    def receive_for_ever() -> None:
        while True:
            received.extend(far.recv(1 << 20))

    with pytest.raises(ConnectionResetError):
        receive_for_ever()
    whole = sent * (len(received) // len(sent) + 1)
    assert whole.startswith(received)


def test_a_socket_that_knows_nothing_of_it_sends_plainly() -> None:
    near, far = socket.socketpair()
    ours = ZeroCopySocket(near, ZeroCopy.AUTO)
    assert ours.sends.problem is not None
    assert ours.sends.problem.startswith("refused: ")
    assert ours.send([memoryview(b"ab"), memoryview(b"c")]) == 3
    assert far.recv(9) == b"abc"
    assert not ours.collect()
    near.close()
    far.close()


@pytest.fixture
def receiver() -> Iterator[KvReceiver]:
    made = TcpTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    yield made
    made.close()


def test_the_log_says_once_that_the_kernel_copies(receiver: KvReceiver) -> None:
    source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    with structlog.testing.capture_logs() as lines:
        sender = TcpTransport().connect(receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES)
        for generation in range(1, 5):
            moves = BlockMoves("r/0", ALL, ALL[::-1], (generation,) * NUM_BLOCKS)
            receiver.buffer()[:] = bytes(POOL_BYTES)
            receiver.expect(moves.dst_block_ids, moves.generations)
            sender.push(memoryview(source), moves, timeout_s=PATIENCE_S)
            assert receiver.poll(moves.dst_block_ids, moves.generations).is_complete
            for src, dst in zip(moves.src_block_ids, moves.dst_block_ids, strict=True):
                arrived = receiver.buffer()[dst * BLOCK_BYTES : (dst + 1) * BLOCK_BYTES]
                assert arrived == memoryview(source)[src * BLOCK_BYTES : (src + 1) * BLOCK_BYTES]
        sender.close()
    told = [line["verdict"] for line in lines if line["event"] == "kv_tcp_zerocopy"]
    assert told == ["it copies all the same"]


def test_a_push_that_ends_by_an_accident_leaves_no_answer_to_the_next(
    receiver: KvReceiver,
) -> None:
    settings = PushSettings(zerocopy=ZeroCopy.INSIST, max_batch_bytes=BLOCK_BYTES)
    sender = TcpTransport(settings=settings).connect(
        receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES
    )
    source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    looks = iter([False, False])

    def breaks() -> bool:
        return next(looks)

    for generation, should_stop in [(1, breaks), (2, lambda: False)]:
        moves = BlockMoves("r/0", ALL, ALL, (generation,) * NUM_BLOCKS)
        receiver.expect(moves.dst_block_ids, moves.generations)
        if should_stop is breaks:
            with pytest.raises(StopIteration):
                sender.push(
                    memoryview(source), moves, timeout_s=PATIENCE_S, should_stop=should_stop
                )
        else:
            receipt = sender.push(memoryview(source), moves, timeout_s=PATIENCE_S)
            assert receipt.num_blocks == NUM_BLOCKS
            assert receiver.poll(moves.dst_block_ids, moves.generations).is_complete
    sender.close()


def test_a_source_may_be_overwritten_as_soon_as_a_cancelled_push_returns(
    receiver: KvReceiver,
) -> None:
    settings = PushSettings(zerocopy=ZeroCopy.INSIST, max_batch_bytes=8 * BLOCK_BYTES)
    sender = TcpTransport(settings=settings).connect(
        receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES
    )
    sent = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    for generation in range(1, 17):
        moves = BlockMoves("r/0", ALL, ALL, (generation,) * NUM_BLOCKS)
        receiver.buffer()[:] = bytes(POOL_BYTES)
        receiver.expect(moves.dst_block_ids, moves.generations)
        looks = iter(range(generation % 8))
        source = bytearray(sent)
        with pytest.raises(TransferCancelled):
            sender.push(
                memoryview(source),
                moves,
                timeout_s=PATIENCE_S,
                should_stop=lambda looks=looks: next(looks, None) is None,  # type: ignore[misc]
            )
        source[:] = bytes(POOL_BYTES)
        wait_for(lambda: receiver.quarantine_clear(ALL))
        for block_id in ALL:
            if receiver.poll([block_id], [generation]).is_complete:
                at = slice(block_id * BLOCK_BYTES, (block_id + 1) * BLOCK_BYTES)
                assert receiver.buffer()[at] == memoryview(sent)[at]
    sender.close()


def verdicts_of(command: list[str], prepare: Callable[[], None] | None = None) -> str:
    told = subprocess.run(
        [*command, sys.executable, "-c", PUSH_TWICE],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=2 * PATIENCE_S,
        preexec_fn=prepare,
    )
    return told.stdout.strip().splitlines()[-1]


def test_a_user_who_may_lock_no_memory_sends_plainly() -> None:
    command: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("this machine has no setpriv command, and root may lock any memory")
        command = ["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]

    def lock_nothing() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))

    assert verdicts_of(command, lock_nothing) == "['refused: No buffer space available']"


def test_a_machine_without_memory_for_the_bookkeeping_sends_plainly() -> None:
    # In a network of its own, where the limit is one of that network alone.
    prepare = "ip link set lo up && echo 1 > /proc/sys/net/core/optmem_max"
    alone = ["unshare", "--net", "sh", "-c"]
    try:
        subprocess.run([*alone, prepare], check=True, capture_output=True, timeout=PATIENCE_S)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network with a limit of its own: {error}")
    command = [*alone, f'{prepare} && exec "$@"', "sh"]
    assert verdicts_of(command) == "['refused: No buffer space available']"
