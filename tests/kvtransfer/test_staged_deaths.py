"""Pools on devices over TCP, between real processes: who dies or stands still in a copy.

Every block is accounted for: it has arrived with the right bytes, or counts for nothing and can be
granted anew. The same with pools of the host, where a copy is one of the kernel's.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvtransfer.device import read_bytes, write_bytes
from kvtransfer.device_testing import FakeDevice
from kvtransfer.errors import PeerGone, TransferTimeout
from kvtransfer.protocol import KvReceiver, Transport
from kvtransfer.sender_process_testing import PushRefused, SenderProcess, SenderSpec
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S, next_incarnation
from kvtransfer.whole_pool_testing import (
    ALL,
    BATCH,
    BLOCK_BYTES,
    NUM_BLOCKS,
    SEED,
    SOURCE,
    num_right_blocks,
    reversed_moves,
    wait_for,
)
from runtime.clock import MonotonicClock
from scheduling.kv_export import KvExport

OWN = b"\xa5" * (NUM_BLOCKS * BLOCK_BYTES)
# A receiver gives up what does not go on.
STALLED_S = 1.0
BATCH_BLOCKS = BATCH.max_batch_bytes // BLOCK_BYTES


def make_staged() -> Transport:
    device = FakeDevice()
    return StagedTcpTransport(lambda: device, DoorSettings(batch_timeout_s=STALLED_S), BATCH)


def make_plain() -> Transport:
    return TcpTransport(DoorSettings(batch_timeout_s=STALLED_S), BATCH)


@pytest.fixture(params=[make_staged, make_plain], ids=["staged_tcp", "tcp"])
def transport(request: pytest.FixtureRequest) -> Transport:
    made: Transport = request.param()
    return made


@pytest.fixture
def receiver(transport: Transport) -> Iterator[KvReceiver]:
    made = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", next_incarnation())
    yield made
    made.close()


def sender_of(receiver: KvReceiver, transport: Transport, **spec: object) -> SenderProcess:
    is_staged = isinstance(transport, StagedTcpTransport)
    made = SenderSpec(
        receiver.export(),
        "prefill-0#1",
        NUM_BLOCKS,
        SEED,
        max_batch_bytes=BATCH.max_batch_bytes,
        is_staged=is_staged,
    )
    return SenderProcess(replace(made, **spec))  # type: ignore[arg-type]


def take_all_back(receiver: KvReceiver) -> None:
    receiver.revoke(ALL)
    wait_for(lambda: receiver.quarantine_clear(ALL))
    write_bytes(receiver.memory(), 0, OWN)


def require_next_sender_is_served(receiver: KvReceiver, transport: Transport) -> None:
    moves = reversed_moves(generation=9)
    receiver.expect(moves.dst_block_ids, moves.generations)
    with sender_of(receiver, transport, sender_id="prefill-1#1") as sender:
        assert sender.push(moves).num_blocks == NUM_BLOCKS
    assert num_right_blocks(receiver, moves) == NUM_BLOCKS


def test_a_sender_that_dies_while_its_device_copies_leaves_whole_batches_only() -> None:
    transport = make_staged()
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", next_incarnation())
    moves = reversed_moves()
    receiver.expect(moves.dst_block_ids, moves.generations)
    # In the fourth piece, whose blocks are neighbours where they leave.
    with sender_of(receiver, transport, fault="die_halfway", at_copy=4) as sender:
        sender.begin_push(moves)
        assert sender.wait_until_dead() == -signal.SIGKILL
    assert num_right_blocks(receiver, moves) == 3 * BATCH_BLOCKS
    take_all_back(receiver)
    assert read_bytes(receiver.memory(), 0, len(OWN)) == OWN
    require_next_sender_is_served(receiver, transport)
    receiver.close()


def test_a_sender_that_is_killed_at_any_moment_shows_no_wrong_block(
    receiver: KvReceiver, transport: Transport
) -> None:
    moves = reversed_moves()
    receiver.expect(moves.dst_block_ids, moves.generations)
    with sender_of(receiver, transport, max_batch_bytes=1) as sender:
        sender.begin_push(moves)
        wait_for(lambda: receiver.poll(ALL, moves.generations).num_arrived >= 20)
        sender.kill()
    assert num_right_blocks(receiver, moves) >= 20
    take_all_back(receiver)
    assert read_bytes(receiver.memory(), 0, len(OWN)) == OWN
    require_next_sender_is_served(receiver, transport)


def test_a_sender_that_stands_still_loses_its_blocks_in_time_and_writes_none_when_it_goes_on(
    receiver: KvReceiver, transport: Transport
) -> None:
    moves = reversed_moves()
    receiver.expect(moves.dst_block_ids, moves.generations)
    with sender_of(receiver, transport, max_batch_bytes=1) as sender:
        sender.begin_push(moves)
        wait_for(lambda: receiver.poll(ALL, moves.generations).num_arrived >= 5)
        sender.signal(signal.SIGSTOP)
        take_all_back(receiver)
        sender.signal(signal.SIGCONT)
        with contextlib.suppress(PushRefused):
            sender.finish_push()
        assert read_bytes(receiver.memory(), 0, len(OWN)) == OWN
    require_next_sender_is_served(receiver, transport)


RECEIVE = f"""
import sys
from kvtransfer.batches import PushSettings, plain_copy
from kvtransfer.device_testing import FakeDevice
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.testing import DyingCopy
at_copy = int(sys.argv[1])
device = FakeDevice(copy_bytes=DyingCopy(at_copy) if at_copy else plain_copy)
transport = StagedTcpTransport(lambda: device, settings=PushSettings(1.0))
receiver = transport.create_receiver({NUM_BLOCKS}, {BLOCK_BYTES}, "decode-9", 1)
receiver.expect(range({NUM_BLOCKS}), [1] * {NUM_BLOCKS})
export = receiver.export()
print(export.address, export.token, flush=True)
sys.stdin.readline()
print(receiver.poll(range({NUM_BLOCKS}), [1] * {NUM_BLOCKS}).num_arrived, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def receiver_process(dies_at_copy: int = 0) -> Iterator[tuple[subprocess.Popen[str], KvExport]]:
    template = make_staged().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-9", 1)
    template.close()
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVE, str(dies_at_copy)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if "kv_door" not in line)
            address, token = next(lines).split()
            yield process, replace(template.export(), address=address, token=token)
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def test_a_receiver_that_dies_while_its_device_copies_is_a_gone_peer() -> None:
    device = FakeDevice()
    transport = StagedTcpTransport(lambda: device, settings=BATCH)
    with receiver_process(dies_at_copy=20) as (process, export):
        sender = transport.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
        source = transport.new_pool(bytes(SOURCE))
        for _ in range(2):
            with pytest.raises(PeerGone):
                sender.push(source, reversed_moves(), timeout_s=PATIENCE_S)
            # The source is the caller's again.
            assert [stream.num_pending for stream in device.streams] == [0, 0]
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        sender.close()
    assert all(pinned.is_closed for pinned in device.pinned)


def test_a_receiver_that_stands_still_ends_a_push_in_its_time_and_is_served_later() -> None:
    device, clock = FakeDevice(), MonotonicClock()
    transport = StagedTcpTransport(lambda: device, settings=BATCH)
    with receiver_process() as (process, export):
        sender = transport.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
        source = transport.new_pool(bytes(SOURCE))
        os.kill(process.pid, signal.SIGSTOP)
        started_at_s = clock.now()
        with pytest.raises(TransferTimeout) as caught:
            sender.push(source, reversed_moves(), timeout_s=0.5)
        assert clock.now() - started_at_s < PATIENCE_S / 2
        assert (caught.value.num_blocks_done, caught.value.num_blocks) == (0, NUM_BLOCKS)
        assert [stream.num_pending for stream in device.streams] == [0, 0]
        os.kill(process.pid, signal.SIGCONT)
        assert sender.push(source, reversed_moves(), timeout_s=PATIENCE_S).num_blocks == NUM_BLOCKS
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("how many\n")
        process.stdin.flush()
        # Every block has a checksum, so none of them is wrong.
        lines = (line for line in process.stdout if line.strip().isdecimal())
        assert int(next(lines)) == NUM_BLOCKS
        sender.close()
