"""One pool, several doors: who comes in by which, and which one a sender takes."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog

from kvtransfer.batches import PushSettings
from kvtransfer.choice import connect_best
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import ExportUnavailable, LayoutMismatch, PeerGone, StaleGeneration
from kvtransfer.lane import LaneSettings, PushJob, PushOutcome
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, PushReceipt, Transport
from kvtransfer.pusher import Pusher
from kvtransfer.receiver import receive_by
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import (
    PATIENCE_S,
    FaultyTransport,
    StallingCopy,
    moves_of,
    next_incarnation,
    patterned_pool,
)
from runtime.clock import MonotonicClock

NUM_BLOCKS, BLOCK_BYTES = 16, 512
SOURCE = memoryview(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=4))


def by_name(*transports: Transport) -> dict[str, Transport]:
    return {transport.name: transport for transport in transports}


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., KvReceiver]]:
    made: list[KvReceiver] = []

    def make(*transports: Transport) -> KvReceiver:
        owner = PoolOwner(f"doors-{os.getpid()}", next_incarnation())
        made.append(receive_by(transports, owner, NUM_BLOCKS, BLOCK_BYTES))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., KvReceiver]) -> KvReceiver:
    # The order does not matter here: shared memory brings the pool.
    return make_receiver(TcpTransport(), SharedMemoryTransport())


def test_senders_of_all_doors_write_into_the_same_pool(receiver: KvReceiver) -> None:
    export = receiver.export()
    assert list(export.by_transport()) == ["shared_memory", "tcp"]
    transports: tuple[Transport, ...] = (SharedMemoryTransport(), TcpTransport())
    for block_id, transport in enumerate(transports):
        path = connect_best(by_name(transport), export, sender_id="p", block_bytes=BLOCK_BYTES)
        receiver.expect([block_id], [1])
        path.sender.push(SOURCE, moves_of((block_id,), (block_id,)), timeout_s=PATIENCE_S)
        arrival = receiver.poll([block_id], [1])
        assert (arrival.is_complete, arrival.transport) == (True, transport.name)
        path.sender.close()
    assert receiver.buffer()[: 2 * BLOCK_BYTES] == SOURCE[: 2 * BLOCK_BYTES]
    # What came over the network once may come another way under the next grant.
    receiver.expect([1], [2])
    sender = SharedMemoryTransport().connect(
        export.by_transport()["shared_memory"], sender_id="p", block_bytes=BLOCK_BYTES
    )
    sender.push(SOURCE, moves_of((0,), (1,), generation=2), timeout_s=PATIENCE_S)
    assert receiver.poll([1], [2]).transport == "shared_memory"
    sender.close()


def test_quarantine_asks_at_every_door(make_receiver: Callable[..., KvReceiver]) -> None:
    for slow in ("shared_memory", "tcp"):
        stall = StallingCopy()
        settings = PushSettings(copy_bytes=stall)
        memory = SharedMemoryTransport(settings=settings if slow == "shared_memory" else None)
        tcp = TcpTransport(settings=settings if slow == "tcp" else None)
        receiver = make_receiver(memory, tcp)
        receiver.expect([4], [1])
        transport = by_name(memory, tcp)[slow]
        sender = transport.connect(
            receiver.export().by_transport()[slow], sender_id="p", block_bytes=BLOCK_BYTES
        )
        refused: list[StaleGeneration] = []

        def push(sender: KvSender = sender, refused: list[StaleGeneration] = refused) -> None:
            try:
                sender.push(SOURCE, moves_of((0,), (4,)), timeout_s=PATIENCE_S)
            except StaleGeneration as error:
                refused.append(error)

        thread = threading.Thread(target=push)
        thread.start()
        assert stall.has_begun.wait(PATIENCE_S)
        receiver.revoke([4])
        assert not receiver.quarantine_clear([4])
        assert not receiver.forget_sender("p")
        stall.may_end.set()
        thread.join(PATIENCE_S)
        assert receiver.quarantine_clear([4])
        assert len(refused) == 1
        sender.close()


def test_a_pool_has_one_home() -> None:
    with pytest.raises(ExportUnavailable, match="only one"):
        receive_by(
            [SharedMemoryTransport(), LoopbackTransport()],
            PoolOwner("decode-0", 1),
            NUM_BLOCKS,
            BLOCK_BYTES,
        )


def test_a_door_that_does_not_open_leaves_nothing_behind(receiver: KvReceiver) -> None:
    host, _, port = receiver.export().by_transport()["tcp"].address.rpartition(":")
    taken = TcpTransport(DoorSettings(host, int(port)))
    owner = PoolOwner(f"closed-{os.getpid()}", 1)
    for _ in range(2):
        # The second try would find the first one's file.
        with pytest.raises(ExportUnavailable, match="kv_port"):
            receive_by([SharedMemoryTransport(), taken], owner, NUM_BLOCKS, BLOCK_BYTES)


def test_a_sender_takes_the_first_of_its_own_that_leads_there(receiver: KvReceiver) -> None:
    export, memory, tcp = receiver.export(), SharedMemoryTransport(), TcpTransport()
    elsewhere = replace(export, host="another machine")
    for transports, way, chosen, reason in (
        ((memory, tcp), export, "shared_memory", "first choice"),
        ((tcp, memory), export, "tcp", "first choice"),
        ((memory, tcp), elsewhere, "tcp", "another machine is not seen here"),
        ((LoopbackTransport(), tcp), export, "tcp", "loopback: not offered"),
    ):
        path = connect_best(by_name(*transports), way, sender_id="p", block_bytes=BLOCK_BYTES)
        assert path.transport == chosen
        assert reason in path.reason
        path.sender.close()
    with pytest.raises(LayoutMismatch, match="another machine"):
        connect_best(by_name(memory), elsewhere, sender_id="p", block_bytes=BLOCK_BYTES)


def test_a_way_that_is_closed_to_us_is_passed_over(receiver: KvReceiver) -> None:
    export, memory = receiver.export(), FaultyTransport(SharedMemoryTransport())
    transports = by_name(memory, TcpTransport())
    for failure, said in (
        (ExportUnavailable("no such right", "run as one user"), "no such right"),
        # A firewall in front of this door says nothing about the next one.
        (PeerGone("decode-0", 1), "no longer exports"),
    ):
        memory.connect_errors.append(failure)
        path = connect_best(transports, export, sender_id="p", block_bytes=BLOCK_BYTES)
        assert path.transport == "tcp"
        assert said in path.reason
        path.sender.close()


def test_the_log_names_the_path_once_and_every_receipt_does(receiver: KvReceiver) -> None:
    outcomes: list[PushOutcome] = []
    done = threading.Semaphore(0)

    def on_done(job: PushJob, outcome: PushOutcome) -> None:
        outcomes.append(outcome)
        done.release()

    with structlog.testing.capture_logs() as lines:
        pusher = Pusher(
            by_name(SharedMemoryTransport(), TcpTransport()),
            SOURCE,
            on_done,
            LaneSettings("prefill-0#1", BLOCK_BYTES),
            MonotonicClock(),
        )
        elsewhere = replace(receiver.export(), host="another machine")
        for block_id in range(3):
            receiver.expect([block_id], [7])
            moves = BlockMoves("r/0", (block_id,), (block_id,), (7,))
            pusher.submit(PushJob(elsewhere, moves, PATIENCE_S))
        for _ in range(3):
            assert done.acquire(timeout=PATIENCE_S)
        assert pusher.close(PATIENCE_S)
    assert [o.transport for o in outcomes if isinstance(o, PushReceipt)] == ["tcp"] * 3
    (line,) = [line for line in lines if line["event"] == "kv_path_chosen"]
    assert line["transport"] == "tcp"
    assert "another machine" in line["reason"]
