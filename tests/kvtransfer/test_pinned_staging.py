"""Blocks of a device by way of pinned rooms: bounded, overlapping, and nothing left behind."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kvtransfer.batches import PushSettings, TaggedBlocks
from kvtransfer.device import DeviceMemory, KvSource
from kvtransfer.device_testing import FakeDevice
from kvtransfer.doors import OnDevice, PoolOwner
from kvtransfer.errors import (
    CopyStuck,
    ExportUnavailable,
    LayoutMismatch,
    LinkBroken,
    TransferCancelled,
    TransferError,
)
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.pinned_staging import RECEIVER_ROOM_BYTES, Rooms, StagedBlocks, StagedSender
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, PushReceipt, never
from kvtransfer.receiver import receive_by
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S, moves_of, next_incarnation, patterned_pool
from runtime.clock import ManualClock, MonotonicClock

NUM_BLOCKS, BLOCK_BYTES = 16, 512
ALL = tuple(range(NUM_BLOCKS))
CONTENT = bytes(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=8))


class Wire:
    """A sender of host memory that writes down what it is given."""

    def __init__(self, inner: KvSender, device: FakeDevice) -> None:
        self._inner = inner
        self._device = device
        self.moves: list[BlockMoves] = []
        # Copies that the device was given by the time of each push.
        self.num_begun: list[int] = []

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        self.moves.append(moves)
        self.num_begun.append(sum(stream.num_begun for stream in self._device.streams))
        return self._inner.push(source, moves, timeout_s=timeout_s, should_stop=should_stop)

    def check(self) -> None:
        self._inner.check()

    def close(self) -> None:
        self._inner.close()


class Side:
    """A staged sender with rooms for two blocks, in front of a pool in host memory."""

    def __init__(self, *, is_manual: bool = False) -> None:
        self.device = FakeDevice(is_manual=is_manual)
        transport = LoopbackTransport(PushSettings(1.0))
        self.receiver: KvReceiver = transport.create_receiver(
            NUM_BLOCKS, BLOCK_BYTES, "decode-0", next_incarnation()
        )
        self.receiver.expect(ALL, [1] * NUM_BLOCKS)
        inner = transport.connect(
            self.receiver.export(), sender_id="prefill-0#1", block_bytes=BLOCK_BYTES
        )
        self.wire = Wire(inner, self.device)
        self.sender = StagedSender(
            self.wire, self.device, BLOCK_BYTES, 2 * BLOCK_BYTES + 7, ManualClock()
        )
        self.source = self.device.allocate(len(CONTENT))
        self.source.write(0, CONTENT)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def make_side() -> Iterator[Callable[..., Side]]:
    sides: list[Side] = []

    def make(**options: bool) -> Side:
        sides.append(Side(**options))
        return sides[-1]

    yield make
    for side in sides:
        side.close()


def test_the_next_piece_is_fetched_while_one_is_sent_and_rooms_are_two(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    receipt = side.sender.push(
        side.source, moves_of(ALL, tuple(reversed(ALL))), timeout_s=PATIENCE_S
    )
    assert [moves.num_blocks for moves in side.wire.moves] == [2] * 8
    # A piece of neighbours is one copy; at each push one more piece than that is under way.
    assert side.wire.num_begun == [2, 3, 4, 5, 6, 7, 8, 8]
    assert len(side.device.streams) == 2
    assert (receipt.num_blocks, receipt.num_bytes) == (NUM_BLOCKS, len(CONTENT))
    assert receipt.num_checksums == NUM_BLOCKS
    arrived = bytes(side.receiver.buffer())
    for block_id in ALL:
        there = NUM_BLOCKS - 1 - block_id
        assert (
            arrived[there * BLOCK_BYTES :][:BLOCK_BYTES]
            == (CONTENT[block_id * BLOCK_BYTES :][:BLOCK_BYTES])
        )
    assert side.receiver.poll(ALL, [1] * NUM_BLOCKS).is_complete


def test_pieces_keep_their_place_in_the_transfer_for_the_sampling_of_checksums(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    moves = BlockMoves("r/0", (3, 4, 9), (0, 1, 2), (1, 1, 1), first_index=10)
    side.sender.push(side.source, moves, timeout_s=PATIENCE_S)
    assert [(m.first_index, m.src_block_ids) for m in side.wire.moves] == [
        (10, (0, 1)),
        (12, (0,)),
    ]


def test_a_cancel_tells_of_all_pieces_and_leaves_no_copy_behind(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    with pytest.raises(TransferCancelled) as caught:
        side.sender.push(
            side.source,
            moves_of(ALL, ALL),
            timeout_s=PATIENCE_S,
            should_stop=lambda: len(side.wire.moves) >= 3,
        )
    assert (caught.value.num_blocks_done, caught.value.num_blocks) == (4, NUM_BLOCKS)
    assert [stream.num_pending for stream in side.device.streams] == [0, 0]


def test_a_push_does_not_return_while_the_device_still_reads_the_source(
    make_side: Callable[..., Side],
) -> None:
    side = make_side(is_manual=True)
    # The second piece names a block that was taken back: sending stops after the first.
    side.receiver.revoke([0])
    outcome: list[TransferError] = []

    def push() -> None:
        with pytest.raises(TransferError) as caught:
            side.sender.push(side.source, moves_of((0, 1, 2, 3), (0, 1, 2, 3)), timeout_s=1e9)
        outcome.append(caught.value)

    thread = threading.Thread(target=push)
    thread.start()
    clock = MonotonicClock()
    until_s = clock.now() + PATIENCE_S
    while not side.device.streams:
        assert clock.now() < until_s
    side.device.streams[0].advance()
    # The piece behind it is being fetched when the first one is refused.
    while not side.wire.moves:
        assert clock.now() < until_s
    assert not outcome
    side.device.streams[1].advance()
    thread.join(PATIENCE_S)
    assert outcome[0].code == "kv_stale_generation"


def test_ids_and_sizes_that_do_not_fit_are_refused_before_anything_is_copied(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    with pytest.raises(LayoutMismatch):
        side.sender.push(side.source, moves_of((NUM_BLOCKS,), (0,)), timeout_s=1.0)
    with pytest.raises(LayoutMismatch):
        side.sender.push(side.device.allocate(BLOCK_BYTES + 8), moves_of((0,), (0,)), timeout_s=1.0)
    assert not side.device.streams


def test_host_memory_goes_straight_through(make_side: Callable[..., Side]) -> None:
    side = make_side()
    side.sender.push(memoryview(CONTENT), moves_of((0,), (0,)), timeout_s=PATIENCE_S)
    assert not side.device.streams


class _Arriving:
    """What the network fills rooms with."""

    def __init__(self, content: bytes, fails_at: int | None = None) -> None:
        self._content = content
        self._at = 0
        self._fails_at = fails_at
        self.sizes: list[int] = []

    def __call__(self, room: memoryview) -> None:
        if self._fails_at is not None and len(self.sizes) == self._fails_at:
            raise ConnectionResetError
        room[:] = self._content[self._at : self._at + len(room)]
        self._at += len(room)
        self.sizes.append(len(room))


def tagged(ids: list[int]) -> TaggedBlocks:
    none = np.zeros(0, np.int64)
    return TaggedBlocks(
        np.array(ids, np.int64), np.ones(len(ids), np.uint64), none, none.astype(np.uint64)
    )


def test_a_batch_larger_than_a_room_is_cut_anywhere_and_lands_in_its_place() -> None:
    block_bytes = RECEIVER_ROOM_BYTES * 3 // 4
    device = FakeDevice()
    pool = device.allocate(4 * block_bytes)
    content = bytes(patterned_pool(3, block_bytes, seed=5))
    staged = StagedBlocks(OnDevice(device, pool), block_bytes, MonotonicClock())
    arriving = _Arriving(content)
    staged.take(tagged([3, 0, 1]), arriving)
    assert max(arriving.sizes) == RECEIVER_ROOM_BYTES
    assert len(device.streams) == 2
    for position, block_id in enumerate([3, 0, 1]):
        wanted = content[position * block_bytes :][:block_bytes]
        assert pool.read(block_id * block_bytes, block_bytes) == wanted
    assert pool.read(2 * block_bytes, block_bytes) == bytes(block_bytes)
    staged.close()
    assert all(stream.is_closed for stream in device.streams)


def test_a_connection_that_breaks_is_told_once_nothing_is_written_any_more() -> None:
    device = FakeDevice()
    block_bytes = RECEIVER_ROOM_BYTES
    pool = device.allocate(2 * block_bytes)
    staged = StagedBlocks(OnDevice(device, pool), block_bytes, MonotonicClock())
    content = bytes(patterned_pool(2, block_bytes, seed=5))
    with pytest.raises(ConnectionResetError):
        staged.take(tagged([0, 1]), _Arriving(content, fails_at=1))
    assert [stream.num_pending for stream in device.streams] == [0, 0]
    assert pool.read(block_bytes, 8) == bytes(8)
    staged.close()


def test_rooms_that_cannot_be_had_are_a_clear_error_and_none_is_kept() -> None:
    class NoRoom(FakeDevice):
        def pin(self, num_bytes: int):  # type: ignore[no-untyped-def]
            raise ExportUnavailable("no memory can be pinned", "raise the limit")

    rooms = Rooms(NoRoom(), 64, ManualClock())
    with pytest.raises(ExportUnavailable, match="raise the limit"):
        rooms.room(0)
    rooms.close()


class _HurryingClock(ManualClock):
    """A second passes whenever someone looks."""

    def now(self) -> float:
        return self.advance(1.0)


def test_a_copy_into_a_room_that_never_ends_is_told(make_side: Callable[..., Side]) -> None:
    side = make_side(is_manual=True)
    sender = StagedSender(side.wire, side.device, BLOCK_BYTES, BLOCK_BYTES, _HurryingClock())
    with pytest.raises(CopyStuck):
        sender.push(side.source, moves_of((0,), (0,)), timeout_s=1.0)
    assert not side.wire.moves
    # Of a GPU that still writes, nothing is freed.
    sender.close()
    assert side.device.pinned
    assert not any(pinned.is_closed for pinned in side.device.pinned)
    assert not any(stream.is_closed for stream in side.device.streams)


def test_behind_a_stuck_copy_pushes_are_refused_at_once_until_the_device_goes_on(
    make_side: Callable[..., Side],
) -> None:
    side = make_side(is_manual=True)
    clock = _HurryingClock()
    sender = StagedSender(side.wire, side.device, BLOCK_BYTES, BLOCK_BYTES, clock)
    with pytest.raises(CopyStuck):
        sender.push(side.source, moves_of((0,), (0,), transfer_id="first"), timeout_s=1.0)
    num_begun = [stream.num_begun for stream in side.device.streams]
    stuck_at_s = clock.now()
    for _ in range(3):
        with pytest.raises(CopyStuck, match=r"transfer r/0: .*after first, begun before"):
            sender.push(side.source, moves_of((1,), (1,)), timeout_s=1e9)
    # Nothing more was given to the device, and nobody looked at the clock.
    assert [stream.num_begun for stream in side.device.streams] == num_begun
    assert clock.now() == stuck_at_s + 1.0
    # Blocks of the host go another way.
    sender.push(memoryview(CONTENT), moves_of((2,), (2,)), timeout_s=1e9)
    next(stream for stream in side.device.streams if stream.num_pending).advance()
    helper = threading.Thread(target=side.device.streams[0].advance)
    helper.start()
    sender.push(side.source, moves_of((1,), (1,)), timeout_s=1e9)
    helper.join(PATIENCE_S)
    assert (
        bytes(side.receiver.buffer()[BLOCK_BYTES:][:BLOCK_BYTES])
        == CONTENT[BLOCK_BYTES:][:BLOCK_BYTES]
    )
    sender.close()
    assert all(pinned.is_closed for pinned in side.device.pinned)


def test_a_device_that_can_say_nothing_refuses_pushes_until_it_can(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    side.sender.push(side.source, moves_of((0,), (0,)), timeout_s=PATIENCE_S)
    side.device.streams[0].failures += ["is_done"] * 3
    for _ in range(3):
        with pytest.raises(CopyStuck):
            side.sender.push(side.source, moves_of((1,), (1,)), timeout_s=PATIENCE_S)
    side.sender.push(side.source, moves_of((1,), (1,)), timeout_s=PATIENCE_S)
    assert side.receiver.poll([0, 1], [1, 1]).is_complete


def test_a_link_whose_device_has_failed_leaves_its_place_to_others() -> None:
    good, bad = FakeDevice(), FakeDevice()
    settings = PushSettings(0.0)
    receiving = StagedTcpTransport(lambda: bad, DoorSettings(max_senders=1), settings)
    sending = StagedTcpTransport(lambda: good, settings=settings)
    receiver = receiving.create_receiver(2, BLOCK_BYTES, "decode-0", next_incarnation())
    receiver.expect([0, 1], [1, 1])
    sender = sending.connect(receiver.export(), sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
    source = sending.new_pool(CONTENT[:BLOCK_BYTES])
    sender.push(source, moves_of((0,), (0,)), timeout_s=PATIENCE_S)
    # The first is the receiver's own.
    for stream in bad.streams[1:]:
        stream.failures += ["begin", "close"]
    with pytest.raises(LinkBroken):
        sender.push(source, moves_of((0,), (1,)), timeout_s=PATIENCE_S)
    # The only place there is.
    sender.push(source, moves_of((0,), (1,)), timeout_s=PATIENCE_S)
    assert receiver.poll([0, 1], [1, 1]).is_complete
    sender.close()
    receiver.close()


def test_a_pool_on_a_device_is_not_hosted_in_shared_memory() -> None:
    memory: DeviceMemory = FakeDevice()
    owner = PoolOwner("decode-0", next_incarnation())
    with pytest.raises(ExportUnavailable, match="take it out of transports"):
        receive_by([SharedMemoryTransport()], owner, 2, BLOCK_BYTES, memory)
