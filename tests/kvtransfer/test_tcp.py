"""TCP between a sender and a pool: strangers, bad networks, deaths, and what each leaves behind."""

import contextlib
import itertools
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog

from kvtransfer.batches import PushSettings
from kvtransfer.errors import (
    ExportUnavailable,
    LinkBroken,
    PeerGone,
    StaleGeneration,
    TransferCancelled,
    TransferTimeout,
)
from kvtransfer.fake_network_testing import FakeNetwork, Weather, talkative_transport
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender
from kvtransfer.sender_process_testing import PushRefused, SenderProcess, SenderSpec
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.tcp_frames import Hello, pack_hello
from kvtransfer.tcp_reception import socket_wait
from kvtransfer.testing import PATIENCE_S
from kvtransfer.whole_pool_testing import (
    BATCH,
    BLOCK_BYTES,
    NUM_BLOCKS,
    SEED,
    SOURCE,
    grant,
    num_right_blocks,
    reversed_moves,
    wait_for,
)
from runtime.clock import Clock, ManualClock
from scheduling.kv_export import KvExport

_lives = itertools.count(1)


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., KvReceiver]]:
    made: list[KvReceiver] = []

    def make(**options: object) -> KvReceiver:
        transport = TcpTransport(DoorSettings(**options))  # type: ignore[arg-type]
        made.append(transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", next(_lives)))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., KvReceiver]) -> KvReceiver:
    return make_receiver()


def connect(
    export: KvExport, settings: PushSettings = BATCH, clock: Clock | None = None
) -> KvSender:
    return TcpTransport(settings=settings, clock=clock).connect(
        export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES
    )


def is_clear_soon(receiver: KvReceiver, moves: BlockMoves) -> None:
    receiver.revoke(moves.dst_block_ids)
    wait_for(lambda: receiver.quarantine_clear(moves.dst_block_ids))


def dial(export: KvExport) -> socket.socket:
    host, _, port = export.address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"TANDEMKV" * 9])
def test_a_stranger_is_dropped_with_a_line_and_harms_nobody(
    make_receiver: Callable[..., KvReceiver], rubbish: bytes
) -> None:
    with structlog.testing.capture_logs() as lines:
        receiver = make_receiver()
        sender = connect(receiver.export())
        with dial(receiver.export()) as stranger:
            stranger.sendall(rubbish)
            with contextlib.suppress(ConnectionResetError):  # it had sent more than was read
                assert stranger.recv(1) == b""
        grant(receiver, reversed_moves())
        sender.push(memoryview(SOURCE), reversed_moves(), timeout_s=PATIENCE_S)
        assert num_right_blocks(receiver, reversed_moves()) == NUM_BLOCKS
        sender.close()
    assert [line["event"] for line in lines].count("kv_stranger_dropped") == 1


def test_who_does_not_know_the_token_is_not_let_in(receiver: KvReceiver) -> None:
    with structlog.testing.capture_logs() as lines, pytest.raises(PeerGone):
        connect(replace(receiver.export(), token="00" * 16))
    assert [line["problem"] for line in lines] == ["a hello with a wrong token"]
    assert receiver.export().token not in str(lines)


def test_connections_that_say_nothing_do_not_keep_a_sender_out(receiver: KvReceiver) -> None:
    silent = [dial(receiver.export()) for _ in range(100)]
    connect(receiver.export()).close()
    for connection in silent:
        connection.close()


def test_a_sender_that_hardly_reads_its_welcome_loses_its_place() -> None:
    door = DoorSettings(max_senders=1, welcome_timeout_s=0.2)
    transport = talkative_transport(64 << 20, door)
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", next(_lives))
    export = receiver.export()
    hello = Hello(
        export.worker_id,
        export.incarnation,
        "prefill-1#1",
        NUM_BLOCKS,
        BLOCK_BYTES,
        bytes.fromhex(export.token),
    )

    def comes_in() -> bool:
        # A little at a time, so that the kernel does not take it for dead; so little that it does
        # not read all of its welcome before the door has looked at the clock.
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            silent.recv(4 << 10)
        try:
            connect(export).close()
        except ExportUnavailable:  # every place is taken
            return False
        return True

    with dial(export) as silent:
        silent.sendall(pack_hello(hello))
        # It has the place: its welcome has begun to arrive.
        assert silent.recv(1, socket.MSG_PEEK)
        # It may lose its place before there is more to read, and not be told.
        silent.settimeout(0.1)
        wait_for(comes_in)
    receiver.close()


def test_a_port_that_is_taken_is_a_clear_error(receiver: KvReceiver) -> None:
    host, _, port = receiver.export().address.rpartition(":")
    with pytest.raises(ExportUnavailable, match="kv_port"):
        TcpTransport(DoorSettings(host, int(port))).create_receiver(1, 8, "decode-1", 1)


def test_addresses_of_version_6_work_where_there_are_any() -> None:
    try:
        receiver = TcpTransport(DoorSettings("::1")).create_receiver(NUM_BLOCKS, 512, "decode-6", 1)
    except ExportUnavailable:
        pytest.skip("this machine has no IPv6 loopback address")
    assert receiver.export().address.startswith("[::1]:")
    TcpTransport().connect(receiver.export(), sender_id="p", block_bytes=512).close()
    receiver.close()


@pytest.mark.parametrize(
    "weather", [Weather(piece_bytes=977), Weather(piece_bytes=60_000, delay_s=0.002)]
)
def test_blocks_arrive_whole_however_they_are_split_and_delayed(
    receiver: KvReceiver, weather: Weather
) -> None:
    with FakeNetwork(receiver.export().address, weather) as network:
        sender = connect(replace(receiver.export(), address=network.address))
        moves = reversed_moves()
        grant(receiver, moves)
        sender.push(memoryview(SOURCE), moves, timeout_s=PATIENCE_S)
        assert num_right_blocks(receiver, moves) == NUM_BLOCKS
        sender.close()


def test_a_cut_in_the_middle_breaks_that_push_only(receiver: KvReceiver) -> None:
    weather = Weather(cut_after_bytes=20 * BLOCK_BYTES)
    with FakeNetwork(receiver.export().address, weather) as network:
        sender = connect(replace(receiver.export(), address=network.address))
        moves = reversed_moves()
        grant(receiver, moves)
        with pytest.raises(LinkBroken):
            sender.push(memoryview(SOURCE), moves, timeout_s=PATIENCE_S)
        # Of two batches of eight blocks, each whole or not at all: a receiver that the machine
        # holds up learns of the cut before it has taken the second.
        assert num_right_blocks(receiver, moves) in (0, 8, 16)
        is_clear_soon(receiver, moves)
        again = reversed_moves(2)
        grant(receiver, again)
        sender.push(memoryview(SOURCE), again, timeout_s=PATIENCE_S)
        assert num_right_blocks(receiver, again) == NUM_BLOCKS
        sender.close()


def test_a_network_that_stalls_ends_in_the_time_of_the_push(receiver: KvReceiver) -> None:
    weather = Weather(stall_after_bytes=20 * BLOCK_BYTES)
    clock, is_over = ManualClock(), threading.Event()

    def let_time_pass() -> None:
        # Not before the network has stalled, however slow it was until then.
        assert network.has_stalled.wait(PATIENCE_S)
        while not is_over.wait(0.005):
            clock.advance(0.05)

    with FakeNetwork(receiver.export().address, weather) as network:
        export = replace(receiver.export(), address=network.address)
        sender = connect(export, clock=clock)
        moves = reversed_moves()
        grant(receiver, moves)
        passing = threading.Thread(target=let_time_pass)
        passing.start()
        with pytest.raises(TransferTimeout) as caught:
            sender.push(memoryview(SOURCE), moves, timeout_s=0.3)
        is_over.set()
        passing.join(PATIENCE_S)
        assert caught.value.num_blocks_done <= 16
        # What lies in the network may still come: the blocks are not free yet.
        receiver.revoke(moves.dst_block_ids)
        assert not receiver.quarantine_clear(moves.dst_block_ids)
        network.flow_again()
        wait_for(lambda: receiver.quarantine_clear(moves.dst_block_ids))
        sender.close()


def test_a_cancel_does_not_wait_for_a_network_that_stalls(receiver: KvReceiver) -> None:
    weather = Weather(stall_after_bytes=20 * BLOCK_BYTES)
    with FakeNetwork(receiver.export().address, weather) as network:
        sender = connect(replace(receiver.export(), address=network.address))
        moves = reversed_moves()
        grant(receiver, moves)
        with pytest.raises(TransferCancelled):
            sender.push(
                memoryview(SOURCE),
                moves,
                timeout_s=PATIENCE_S,
                should_stop=network.has_stalled.is_set,
            )
        sender.close()


def test_a_receiver_gives_a_stalled_batch_up(make_receiver: Callable[..., KvReceiver]) -> None:
    receiver = make_receiver(batch_timeout_s=2.0)
    weather = Weather(stall_after_bytes=20 * BLOCK_BYTES)
    with FakeNetwork(receiver.export().address, weather) as network:
        sender = connect(replace(receiver.export(), address=network.address))
        moves = reversed_moves()
        grant(receiver, moves)
        outcome: list[BaseException] = []

        def push() -> None:
            try:
                sender.push(memoryview(SOURCE), moves, timeout_s=PATIENCE_S)
            except (LinkBroken, TransferTimeout) as error:
                outcome.append(error)

        thread = threading.Thread(target=push)
        thread.start()
        assert network.has_stalled.wait(PATIENCE_S)
        is_clear_soon(receiver, moves)
        thread.join(PATIENCE_S)
        assert [type(error) for error in outcome] == [LinkBroken]
        sender.close()


def test_a_refused_batch_leaves_the_connection_in_step(receiver: KvReceiver) -> None:
    sender = connect(receiver.export())
    for generation in range(1, 8):
        moves = reversed_moves(generation)
        grant(receiver, moves)
        receiver.revoke([40])
        with pytest.raises(StaleGeneration) as caught:
            sender.push(memoryview(SOURCE), moves, timeout_s=PATIENCE_S)
        assert (caught.value.block_id, caught.value.generation) == (40, generation)
        # All batches but the one with block 40.
        assert num_right_blocks(receiver, moves) >= 16
        assert receiver.poll([40], [generation]).num_arrived == 0
    sender.close()


def sender_process(receiver: KvReceiver, batch_blocks: int = 8) -> SenderProcess:
    spec = SenderSpec(receiver.export(), "prefill-0#1", NUM_BLOCKS, SEED)
    return SenderProcess(replace(spec, max_batch_bytes=batch_blocks * BLOCK_BYTES))


def test_a_sender_that_is_killed_at_any_moment_shows_no_wrong_block(receiver: KvReceiver) -> None:
    for generation, num_arrived_at_kill in enumerate([1, 30], start=1):
        moves = reversed_moves(generation)
        grant(receiver, moves)
        receiver.buffer()[:] = bytes(NUM_BLOCKS * BLOCK_BYTES)
        with sender_process(receiver, batch_blocks=1) as sender:
            sender.begin_push(moves)
            wait_for(
                lambda moves=moves, least=num_arrived_at_kill: (  # type: ignore[misc]
                    receiver.poll(moves.dst_block_ids, moves.generations).num_arrived >= least
                )
            )
            sender.kill()
        assert num_right_blocks(receiver, moves) >= num_arrived_at_kill
        is_clear_soon(receiver, moves)


def test_a_block_that_left_quarantine_is_never_written_again(receiver: KvReceiver) -> None:
    own = b"\xa5" * (NUM_BLOCKS * BLOCK_BYTES)
    refusals: set[str] = set()
    with sender_process(receiver, batch_blocks=3) as sender:
        sender.connect()
        for generation in range(1, 41):
            moves = reversed_moves(generation)
            grant(receiver, moves)
            sender.begin_push(moves)
            # Revoke before, amid and after the push.
            least = generation % 6 * 12
            wait_for(
                lambda moves=moves, least=least: (  # type: ignore[misc]
                    receiver.poll(moves.dst_block_ids, moves.generations).num_arrived >= least
                )
            )
            is_clear_soon(receiver, moves)
            receiver.buffer()[:] = own
            try:
                sender.finish_push()
            except PushRefused as refusal:
                refusals.add(refusal.code)
            assert receiver.buffer() == own
    assert refusals == {"kv_stale_generation"}


def test_a_killed_receiver_is_a_gone_peer() -> None:
    script = (
        "import sys; from kvtransfer.tcp import TcpTransport\n"
        f"r = TcpTransport().create_receiver({NUM_BLOCKS}, {BLOCK_BYTES}, 'decode-9', 1)\n"
        f"r.expect(range({NUM_BLOCKS}), [1] * {NUM_BLOCKS})\n"
        "e = r.export(); print(e.address, e.token, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = (line for line in process.stdout if "kv_door" not in line)
        address, token = next(lines).split()
        template = TcpTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-9", 1)
        template.close()
        export = replace(template.export(), address=address, token=token)
        sender = connect(export)
        sender.push(memoryview(SOURCE), reversed_moves(), timeout_s=PATIENCE_S)
        process.kill()
        process.wait(PATIENCE_S)
        with pytest.raises(PeerGone):
            sender.push(memoryview(SOURCE), reversed_moves(), timeout_s=PATIENCE_S)
        sender.close()


def test_waiting_for_a_descriptor_needs_none() -> None:
    """The door waits like this when there are none left."""
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        socket_wait(ours, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        ours.close()
        theirs.close()
