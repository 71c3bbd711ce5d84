"""The way to a peer is measured when it is first taken: what that touches, and what follows."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import structlog
from structlog.typing import EventDict

from kvtransfer.batches import PushSettings
from kvtransfer.device import read_bytes, write_bytes
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import PathTooSlow
from kvtransfer.lane import LaneSettings, PushJob, PushOutcome
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.probe import measure_path
from kvtransfer.protocol import BlockMoves, KvReceiver, PushReceipt, Transport
from kvtransfer.pusher import Pusher
from kvtransfer.receiver import receive_by
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import PATIENCE_S, FaultyTransport, next_incarnation, patterned_pool
from runtime.clock import ManualClock, MonotonicClock
from scheduling.kv_export import KvExport

NUM_BLOCKS, BLOCK_BYTES = 8, 256 << 10
ALL = range(NUM_BLOCKS)
# Fewer blocks than are set aside: the sender's pool may be the smaller one.
SOURCE = memoryview(patterned_pool(4, BLOCK_BYTES, seed=6))


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., KvReceiver]]:
    made: list[KvReceiver] = []

    def make(*transports: Transport) -> KvReceiver:
        owner = PoolOwner(f"probed-{os.getpid()}", next_incarnation())
        made.append(receive_by(transports, owner, NUM_BLOCKS, BLOCK_BYTES))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def slow_settings(clock: ManualClock, bytes_per_s: float) -> PushSettings:
    """A copy that takes its time by this clock."""

    def copy(target: npt.NDArray[np.uint8], source: object) -> None:
        clock.advance(len(target) / bytes_per_s)

    return PushSettings(copy_bytes=copy, max_batch_bytes=BLOCK_BYTES)


class Pushes:
    """A pusher with some transports, and what it said and logged."""

    def __init__(
        self, transports: dict[str, Transport], clock: ManualClock, min_bytes_per_s: float
    ) -> None:
        self._outcomes: list[PushOutcome] = []
        self._done = threading.Semaphore(0)
        self._generations = itertools.count(1)
        settings = LaneSettings("prefill-0#1", BLOCK_BYTES, min_bytes_per_s=min_bytes_per_s)
        self._pusher = Pusher(transports, SOURCE, self._on_done, settings, clock)

    def _on_done(self, job: PushJob, outcome: PushOutcome) -> None:
        self._outcomes.append(outcome)
        self._done.release()

    def push(self, receiver: KvReceiver, export: KvExport) -> PushOutcome:
        """One block, and what became of it."""
        generation = next(self._generations)
        receiver.expect([0], [generation])
        self._pusher.submit(PushJob(export, BlockMoves("r/0", (0,), (0,), (generation,)), 1e9))
        assert self._done.acquire(timeout=PATIENCE_S)
        return self._outcomes[-1]

    def close(self) -> None:
        assert self._pusher.close(PATIENCE_S)


def lines_of(lines: Sequence[EventDict], event: str) -> list[EventDict]:
    return [line for line in lines if line["event"] == event]


def test_measuring_touches_no_block_that_holds_kv(
    make_transport: Callable[..., Transport], make_receiver: Callable[..., KvReceiver]
) -> None:
    transport = make_transport(settings=PushSettings(checksum_fraction=1.0))
    receiver = make_receiver(transport)
    export = receiver.export()
    own = bytes(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=7))
    memory = receiver.memory()
    write_bytes(memory, 0, own)
    # Some are granted, to somebody else; the others belong to nobody.
    receiver.expect([0, 5], [1, 1])
    sender = transport.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
    for _ in range(2):
        bytes_per_s = measure_path(sender, export, SOURCE, MonotonicClock())
        assert bytes_per_s is not None
        assert bytes_per_s > 0
    assert read_bytes(memory, 0, len(own)) == own
    assert receiver.poll([0, 5], [1, 1]).num_arrived == 0
    assert receiver.quarantine_clear(ALL)
    sender.close()


def test_what_is_told_is_the_speed_of_the_fastest_round() -> None:
    clock = ManualClock()
    speeds = iter([100e6, 400e6, 200e6, 300e6])

    def copy(target: npt.NDArray[np.uint8], source: object) -> None:
        clock.advance(len(target) / next(speeds))

    transport = LoopbackTransport(PushSettings(copy_bytes=copy, checksum_fraction=0.0))
    # One block, so that a round is one copy.
    receiver = receive_by([transport], PoolOwner("decode-0", 1), 1, 8 << 20)
    export = receiver.export()
    sender = transport.connect(export, sender_id="p", block_bytes=8 << 20)
    bytes_per_s = measure_path(sender, export, memoryview(bytes(8 << 20)), clock)
    assert bytes_per_s == pytest.approx(400e6)
    receiver.close()


def test_a_way_that_moves_nothing_in_time_is_measured_as_slow(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    clock = ManualClock()
    transport = LoopbackTransport(slow_settings(clock, 1.5 * BLOCK_BYTES), clock)
    receiver = make_receiver(transport)
    sender = transport.connect(receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES)
    bytes_per_s = measure_path(sender, receiver.export(), SOURCE, clock)
    assert bytes_per_s == pytest.approx(1.5 * BLOCK_BYTES)
    assert clock.now() < 4.0
    sender.close()


def test_a_pool_that_sets_nothing_aside_is_taken_unmeasured() -> None:
    transport = LoopbackTransport()
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    sender = transport.connect(receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES)
    assert measure_path(sender, receiver.export(), SOURCE, MonotonicClock()) is None
    receiver.close()


def test_a_way_that_is_too_slow_is_refused_with_its_figure_and_measured_again_later(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    clock = ManualClock()
    transport = FaultyTransport(LoopbackTransport(slow_settings(clock, 20e6)))
    receiver = make_receiver(transport)
    with structlog.testing.capture_logs() as lines:
        pushes = Pushes({transport.name: transport}, clock, min_bytes_per_s=100e6)
        for _ in range(3):
            outcome = pushes.push(receiver, receiver.export())
            assert isinstance(outcome, PathTooSlow)
            assert "20 MB/s by loopback, not 100" in str(outcome)
            assert "min_kv_bytes_per_s" in str(outcome)
            # The others behind it may go to other peers, and this one may get better.
            assert not outcome.peer_is_lost
        assert len(transport.connects) == transport.num_closed_senders == 1
        clock.advance(31.0)
        pushes.push(receiver, receiver.export())
        assert len(transport.connects) == transport.num_closed_senders == 2
        pushes.close()
    assert len(lines_of(lines, "kv_path_refused")) == 2


def test_a_slow_way_gives_place_to_a_fast_one_and_the_log_warns(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    clock = ManualClock()
    slow = LoopbackTransport(slow_settings(clock, 20e6))
    receiver = make_receiver(slow, TcpTransport())
    with structlog.testing.capture_logs() as lines:
        pushes = Pushes({"loopback": slow, "tcp": TcpTransport()}, clock, 100e6)
        outcome = pushes.push(receiver, receiver.export())
        pushes.close()
    assert isinstance(outcome, PushReceipt)
    assert outcome.transport == "tcp"
    (chosen,) = lines_of(lines, "kv_path_chosen")
    assert chosen["bytes_per_s"] > 100e6
    (warning,) = lines_of(lines, "kv_path_slower_than_offered")
    assert "20 MB/s by loopback" in warning["problem"]


@pytest.mark.parametrize("is_same_machine", [True, False])
def test_the_log_warns_where_containers_of_one_machine_do_not_share_their_memory(
    make_receiver: Callable[..., KvReceiver], is_same_machine: bool
) -> None:
    transports: dict[str, Transport] = {
        "shared_memory": SharedMemoryTransport(),
        "tcp": TcpTransport(),
    }
    receiver = make_receiver(*transports.values())
    export = receiver.export()
    kernel = export.host.partition("/")[0] if is_same_machine else "another-kernel"
    with structlog.testing.capture_logs() as lines:
        pushes = Pushes(transports, ManualClock(), 0.0)
        outcome = pushes.push(receiver, replace(export, host=f"{kernel}/0:0"))
        pushes.close()
    assert isinstance(outcome, PushReceipt)
    warnings = lines_of(lines, "kv_path_slower_than_offered")
    assert len(warnings) == is_same_machine
    assert all("share one between the containers" in line["problem"] for line in warnings)


def test_a_way_that_only_one_side_was_told_of_is_warned_of_once(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    receiver = make_receiver(TcpTransport(), SharedMemoryTransport())
    with structlog.testing.capture_logs() as lines:
        pushes = Pushes({"loopback": LoopbackTransport(), "tcp": TcpTransport()}, ManualClock(), 0)
        for host in ("first", "second", "first"):
            outcome = pushes.push(receiver, replace(receiver.export(), host=host))
            assert isinstance(outcome, PushReceipt)
        pushes.close()
    chosen = lines_of(lines, "kv_path_chosen")[0]
    assert (chosen["not_offered"], chosen["not_tried"]) == ("loopback", "shared_memory")
    (warning,) = lines_of(lines, "kv_transports_not_offered")
    assert warning["transports"] == "loopback"
    assert f"{receiver.export().worker_id} does not offer loopback: set" in warning["hint"]
    assert "--decode-worker.transports" in warning["hint"]


def test_sides_that_were_told_the_same_are_not_warned_of(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    receiver = make_receiver(TcpTransport())
    with structlog.testing.capture_logs() as lines:
        pushes = Pushes({"tcp": TcpTransport()}, ManualClock(), 0.0)
        pushes.push(receiver, receiver.export())
        pushes.close()
    (chosen,) = lines_of(lines, "kv_path_chosen")
    assert (chosen["not_offered"], chosen["not_tried"]) == (None, None)
    assert lines_of(lines, "kv_transports_not_offered") == []
