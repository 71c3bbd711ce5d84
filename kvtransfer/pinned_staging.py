"""Blocks of a device by way of the host: a transport that moves host memory, between GPU pools.

Each side has two pinned rooms of bounded size. A sender's device copies one piece into a room while
the network sends the other; a receiver's device empties one while the network fills the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from kvtransfer.batches import TaggedBlocks, num_source_blocks
from kvtransfer.device import (
    ByteRun,
    CopyStream,
    DeviceMemory,
    DevicePool,
    KvSource,
    PinnedBytes,
    num_bytes_of,
)
from kvtransfer.device_writing import StuckCopies, kept_if_stuck, wait_for_copies
from kvtransfer.doors import OnDevice
from kvtransfer.errors import CopyStuck, TransferCancelled, TransferTimeout
from kvtransfer.plan import merge_runs
from kvtransfer.protocol import BlockMoves, KvSender, PushReceipt, never
from runtime.clock import Clock

NUM_ROOMS: Final = 2
# Of a receiver's room; it has two for each sender that has ever sent a batch and is connected.
RECEIVER_ROOM_BYTES: Final = 4 << 20
# A receiver's copies in what is said of stuck ones; the link's log lines name the transfer.
_ARRIVING: Final = "arriving over the network"


class Rooms:
    """Pinned rooms taken in turns, each with a stream of its own. Used by one thread."""

    def __init__(self, memory: DeviceMemory, room_bytes: int, clock: Clock) -> None:
        self._memory = memory
        self._room_bytes = room_bytes
        self._clock = clock
        self._rooms: list[tuple[PinnedBytes, CopyStream]] = []
        # A copy into or out of a room that may go on for ever.
        self._stuck = StuckCopies()

    def room(self, number: int) -> tuple[memoryview, CopyStream]:
        """Where the piece of this number goes, and the stream for its copies.

        Raises: ExportUnavailable, DeviceFailed.
        """
        while len(self._rooms) < NUM_ROOMS:
            pinned = self._memory.pin(self._room_bytes)
            try:
                self._rooms.append((pinned, self._memory.new_stream()))
            except BaseException:
                pinned.close()
                raise
        pinned, stream = self._rooms[number % NUM_ROOMS]
        return pinned.view, stream

    def wait(self, number: int, transfer_id: str, must_end: Callable[[], bool]) -> None:
        """Until the copies of this piece have ended. Raises: CopyStuck."""
        _, stream = self.room(number)
        try:
            with kept_if_stuck(self):
                wait_for_copies(stream, transfer_id, must_end, self._clock)
        except CopyStuck as error:
            self._stuck.begin(error, [stream for _, stream in self._rooms])
            raise

    def require_usable(self, transfer_id: str) -> None:
        """Raises: CopyStuck, at once, while a copy of an earlier transfer is."""
        self._stuck.require_over(transfer_id)

    def is_usable(self) -> bool:
        """Whether no copy is stuck, or not any more; never waits."""
        return self._stuck.is_over()

    def wait_for_all(self, transfer_id: str) -> None:
        """Until no copy uses a room. Raises: CopyStuck."""
        for number in range(len(self._rooms)):
            self.wait(number, transfer_id, lambda: True)

    def close(self) -> None:
        """Let go of them. Twice is fine. Those that a stuck copy uses stay with the process."""
        if not self._stuck.is_over():
            return
        for pinned, stream in self._rooms:
            stream.close()
            pinned.close()
        self._rooms = []


class StagedSender:
    """See `KvSender`. Host memory goes straight to the sender underneath."""

    def __init__(
        self,
        inner: KvSender,
        memory: DeviceMemory,
        block_bytes: int,
        room_bytes: int,
        clock: Clock,
    ) -> None:
        self._inner = inner
        self._block_bytes = block_bytes
        self._num_room_blocks = max(1, room_bytes // block_bytes)
        self._clock = clock
        self._rooms = Rooms(memory, self._num_room_blocks * block_bytes, clock)

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        if isinstance(source, memoryview):
            return self._inner.push(source, moves, timeout_s=timeout_s, should_stop=should_stop)
        num_source_blocks(num_bytes_of(source), moves, self._block_bytes)
        self._rooms.require_usable(moves.transfer_id)
        self._inner.check()
        push = _StagedPush(
            self._inner, self._rooms, source, self._block_bytes, self._clock, should_stop
        )
        with kept_if_stuck(source):
            try:
                return push.run(list(_pieces_of(moves, self._num_room_blocks)), moves, timeout_s)
            except CopyStuck:
                raise
            except BaseException:
                # A piece that is not sent any more may be on its way: the source is the caller's
                # again.
                self._rooms.wait_for_all(moves.transfer_id)
                raise

    def check(self) -> None:
        self._inner.check()
        self._rooms.is_usable()

    def close(self) -> None:
        self._rooms.close()
        self._inner.close()


def _pieces_of(moves: BlockMoves, max_blocks: int) -> Iterator[BlockMoves]:
    for start in range(0, moves.num_blocks, max_blocks):
        end = start + max_blocks
        yield replace(
            moves,
            src_block_ids=moves.src_block_ids[start:end],
            dst_block_ids=moves.dst_block_ids[start:end],
            generations=moves.generations[start:end],
            first_index=moves.first_index + start,
        )


@dataclass(slots=True)
class _StagedPush:
    """One push under way."""

    inner: KvSender
    rooms: Rooms
    source: DevicePool
    block_bytes: int
    clock: Clock
    should_stop: Callable[[], bool]

    def run(self, pieces: list[BlockMoves], moves: BlockMoves, timeout_s: float) -> PushReceipt:
        started_at_s = self.clock.now()
        until_s = started_at_s + timeout_s
        total = PushReceipt(0, 0, 0, 0, 0.0)

        def must_end() -> bool:
            return self.should_stop() or self.clock.now() > until_s

        for number, piece in enumerate(pieces):
            if number == 0:
                self._fetch(0, piece)
            self.rooms.wait(number, moves.transfer_id, must_end)
            if number + 1 < len(pieces):
                # Into the other room, which the network has let go of.
                self._fetch(number + 1, pieces[number + 1])
            try:
                sent = self._send(number, piece, until_s - self.clock.now())
            except (TransferCancelled, TransferTimeout) as error:
                num_done = total.num_blocks + error.num_blocks_done
                raise type(error)(moves.transfer_id, num_done, moves.num_blocks) from error
            total = PushReceipt(
                total.num_blocks + sent.num_blocks,
                total.num_bytes + sent.num_bytes,
                total.num_copies + sent.num_copies,
                total.num_checksums + sent.num_checksums,
                0.0,
            )
        return replace(total, elapsed_s=self.clock.now() - started_at_s)

    def _fetch(self, number: int, piece: BlockMoves) -> None:
        """Have the device copy the blocks of a piece into its room, one behind the other."""
        room, stream = self.rooms.room(number)
        size = self.block_bytes
        merged = merge_runs(piece.src_block_ids, range(piece.num_blocks))
        runs = [ByteRun(src * size, at * size, count * size) for src, at, count in merged]
        stream.begin(room, self.source, runs)

    def _send(self, number: int, piece: BlockMoves, left_s: float) -> PushReceipt:
        room, _ = self.rooms.room(number)
        blocks = room[: piece.num_blocks * self.block_bytes]
        moves = replace(piece, src_block_ids=tuple(range(piece.num_blocks)))
        return self.inner.push(blocks, moves, timeout_s=left_s, should_stop=self.should_stop)


class StagedBlocks:
    """A receiver's way from the network into a pool on a device. Used by a link's thread."""

    def __init__(self, device: OnDevice, block_bytes: int, clock: Clock) -> None:
        self._pool = device.pool
        self._block_bytes = block_bytes
        self._rooms = Rooms(device.memory, RECEIVER_ROOM_BYTES, clock)

    def take(self, blocks: TaggedBlocks, receive_into: Callable[[memoryview], None]) -> None:
        """Receive the bytes of a batch, in the order of its blocks; all is there on return.

        Raises: what `receive_into` does, once nothing is written any more; CopyStuck,
        DeviceFailed, ExportUnavailable.
        """
        with kept_if_stuck(self._pool):
            self._take(blocks, receive_into)

    def is_still(self) -> bool:
        """Whether nothing is written into the pool any more, after CopyStuck; never waits."""
        return self._rooms.is_usable()

    def close(self) -> None:
        """Let go of the rooms. Twice is fine."""
        self._rooms.close()

    def _take(self, blocks: TaggedBlocks, receive_into: Callable[[memoryview], None]) -> None:
        try:
            for number, runs in enumerate(self._loads_of(blocks)):
                room, stream = self._rooms.room(number)
                self._rooms.wait(number, _ARRIVING, lambda: True)
                receive_into(room[: runs[-1].src + runs[-1].num_bytes])
                stream.begin(self._pool, room, runs)
        except CopyStuck:
            raise
        except BaseException:
            self._rooms.wait_for_all(_ARRIVING)
            raise
        self._rooms.wait_for_all(_ARRIVING)

    def _loads_of(self, blocks: TaggedBlocks) -> Iterator[list[ByteRun]]:
        """What fits into a room at a time, and where it goes from there."""
        ids, size = blocks.dst.tolist(), self._block_bytes
        load: list[ByteRun] = []
        room_left = RECEIVER_ROOM_BYTES
        for _, dst, num_blocks in merge_runs(range(len(ids)), ids):
            start, end = dst * size, (dst + num_blocks) * size
            while start < end:
                num_bytes = min(end - start, room_left)
                load.append(ByteRun(RECEIVER_ROOM_BYTES - room_left, start, num_bytes))
                start += num_bytes
                room_left -= num_bytes
                if not room_left:
                    yield load
                    load, room_left = [], RECEIVER_ROOM_BYTES
        if load:
            yield load
