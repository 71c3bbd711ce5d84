"""Process groups within one process: what comes too late or not at all, many peers, new lives."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kvtransfer.batches import (
    PushSettings,
)
from kvtransfer.errors import (
    ExportUnavailable,
    LinkBroken,
    StaleGeneration,
    StaleIncarnation,
)
from kvtransfer.group_testing import announce, join_by_hand
from kvtransfer.group_transport import GroupTransport
from kvtransfer.lane import LaneSettings, PushJob, PushOutcome
from kvtransfer.process_group import Gloo
from kvtransfer.protocol import KvReceiver, KvSender, PushReceipt
from kvtransfer.pusher import Pusher
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import (
    KV_PORT,
    PATIENCE_S,
    next_incarnation,
    own_loopback_host,
)
from kvtransfer.whole_pool_testing import (
    ALL,
    BATCH,
    BLOCK_BYTES,
    NUM_BLOCKS,
    SOURCE,
    grant,
    num_right_blocks,
    push,
    reversed_moves,
    wait_for,
)
from runtime.clock import MonotonicClock
from scheduling.kv_export import KvExport

GLOO = Gloo()
OWN = b"\xa5" * (NUM_BLOCKS * BLOCK_BYTES)


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., KvReceiver]]:
    made: list[KvReceiver] = []

    def make(settings: PushSettings = BATCH, **door: object) -> KvReceiver:
        transport = GroupTransport(GLOO, DoorSettings(**door), settings)  # type: ignore[arg-type]
        life = next_incarnation()
        made.append(transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", life))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., KvReceiver]) -> KvReceiver:
    return make_receiver()


def connect(export: KvExport, settings: PushSettings = BATCH) -> KvSender:
    transport = GroupTransport(Gloo(), settings=settings)
    return transport.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)


def test_a_batch_that_is_announced_and_never_sent_keeps_no_block(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    receiver = make_receiver(batch_timeout_s=1.0)
    stream, group = join_by_hand(receiver.export(), GLOO)
    grant(receiver, reversed_moves())
    announce(stream, SOURCE, reversed_moves(), BLOCK_BYTES, BATCH)
    receiver.revoke(ALL)
    # Nothing can be written but from the link's own room.
    assert receiver.quarantine_clear(ALL)
    receiver.buffer()[:] = OWN
    # The link is given up in time, and its place is free.
    assert stream.has_news(PATIENCE_S)
    group.close()
    stream.close()
    assert receiver.buffer() == OWN
    moves = reversed_moves(2)
    grant(receiver, moves)
    sender = connect(receiver.export())
    push(sender, moves)
    assert num_right_blocks(receiver, moves) == NUM_BLOCKS
    sender.close()


def test_a_sender_that_leaves_in_the_middle_of_a_batch_is_noticed_at_once(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    receiver = make_receiver(max_senders=1)
    stream, group = join_by_hand(receiver.export(), GLOO)
    grant(receiver, reversed_moves())
    announce(stream, SOURCE, reversed_moves(), BLOCK_BYTES, BATCH)
    group.close()
    stream.reset()

    def has_room() -> bool:
        with contextlib.suppress(ExportUnavailable):
            connect(receiver.export()).close()
            return True
        return False

    wait_for(has_room)
    assert num_right_blocks(receiver, reversed_moves()) == 0


def test_a_batch_that_has_no_room_ends_its_link(receiver: KvReceiver) -> None:
    stream, group = join_by_hand(receiver.export(), GLOO)
    larger = replace(BATCH, max_batch_bytes=9 * BLOCK_BYTES)
    announce(stream, SOURCE, reversed_moves(), BLOCK_BYTES, larger)
    assert stream.has_news(PATIENCE_S)
    group.close()
    stream.close()


def test_a_batch_is_no_larger_than_the_receiver_has_room_for(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    receiver = make_receiver(replace(BATCH, max_batch_bytes=3 * BLOCK_BYTES))
    sender = connect(receiver.export(), replace(BATCH, max_batch_bytes=NUM_BLOCKS * BLOCK_BYTES))
    moves = reversed_moves()
    grant(receiver, moves)
    assert push(sender, moves).num_blocks == NUM_BLOCKS
    assert num_right_blocks(receiver, moves) == NUM_BLOCKS
    sender.close()


def test_a_refused_batch_leaves_the_group_in_step(receiver: KvReceiver) -> None:
    sender = connect(receiver.export())
    for generation in range(1, 8):
        moves = reversed_moves(generation)
        grant(receiver, moves)
        receiver.revoke([40])
        with pytest.raises(StaleGeneration) as caught:
            push(sender, moves)
        assert (caught.value.block_id, caught.value.generation) == (40, generation)
        assert num_right_blocks(receiver, moves) >= 16
        assert receiver.poll([40], [generation]).num_arrived == 0
    sender.close()


def test_the_next_life_of_a_receiver_is_reached_by_a_group_of_its_own(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    place = {"host": own_loopback_host(), "port": KV_PORT}
    first = make_receiver(**place)
    sender = connect(first.export())
    grant(first, reversed_moves())
    push(sender, reversed_moves())
    first.close()
    second = make_receiver(**place)
    grant(second, reversed_moves())
    with pytest.raises((StaleIncarnation, LinkBroken)):
        push(sender, reversed_moves())
    sender.close()
    assert num_right_blocks(second, reversed_moves()) == 0
    newer = connect(second.export())
    push(newer, reversed_moves())
    assert num_right_blocks(second, reversed_moves()) == NUM_BLOCKS
    newer.close()


NUM_PEERS = 8
# Of both sides of a pair, its receiver's store included.
MOST_FILES, MOST_THREADS = 40, 6


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_many_peers_at_once_take_bounded_threads_and_files_and_give_all_back() -> None:
    connect_once = GroupTransport(Gloo()).create_receiver(1, BLOCK_BYTES, "first", 1)
    connect(connect_once.export()).close()
    connect_once.close()
    gc.collect()
    files, threads = num_files(), num_threads()
    transport = GroupTransport(Gloo(), settings=BATCH)
    receivers = {
        f"decode-{i}": transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, f"decode-{i}", 1)
        for i in range(NUM_PEERS)
    }
    outcomes: list[PushOutcome] = []
    have_all = threading.Event()

    def on_done(job: PushJob, outcome: PushOutcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2 * NUM_PEERS:
            have_all.set()

    settings = LaneSettings("prefill-0#1", BLOCK_BYTES)
    pusher = Pusher(
        {transport.name: transport}, memoryview(SOURCE), on_done, settings, MonotonicClock()
    )
    for generation in (1, 2):
        moves = reversed_moves(generation)
        for receiver in receivers.values():
            grant(receiver, moves)
            pusher.submit(PushJob(receiver.export(), moves, PATIENCE_S))
    assert have_all.wait(PATIENCE_S)
    # The first grant was over before its push began, or not.
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds <= {PushReceipt, StaleGeneration}
    for receiver in receivers.values():
        assert num_right_blocks(receiver, reversed_moves(2)) == NUM_BLOCKS
    assert num_files() - files <= NUM_PEERS * MOST_FILES
    assert num_threads() - threads <= NUM_PEERS * MOST_THREADS
    assert pusher.close(PATIENCE_S)
    for receiver in receivers.values():
        receiver.close()
    gc.collect()
    wait_for(lambda: num_threads() <= threads)
    wait_for(lambda: num_files() <= files)


def test_addresses_of_version_6_work_where_there_are_any(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    try:
        # On all addresses: one of version 4 comes in by it as well.
        receiver = make_receiver(host="::")
    except ExportUnavailable:
        pytest.skip("this machine has no IPv6 addresses")
    port = receiver.export().address.rpartition(":")[2]
    for generation, host in enumerate(["[::1]", "127.0.0.1"], start=1):
        sender = connect(replace(receiver.export(), address=f"{host}:{port}"))
        moves = reversed_moves(generation)
        grant(receiver, moves)
        push(sender, moves)
        assert num_right_blocks(receiver, moves) == NUM_BLOCKS
        sender.close()


def test_other_transports_do_without_torch() -> None:
    script = (
        "import sys, kvtransfer.tcp, kvtransfer.nixl, kvtransfer.shared_memory, kvtransfer.pusher\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_S)
