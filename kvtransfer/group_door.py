"""The receiver's side of gloo and NCCL: batches are announced on a connection and received beside.

Bytes are received into room of the link's own, whatever has become of the grant meanwhile: a send
that nobody receives would hold up those behind it. Only the copy from there into the pool is
claimed, so a sender that stands still keeps no block from its owner.
"""

from dataclasses import dataclass

import torch

from kvtransfer.batches import TaggedBlocks
from kvtransfer.device import KvSource
from kvtransfer.doors import ServedPool
from kvtransfer.errors import DeviceFailed
from kvtransfer.group_meeting import new_meeting, receive_group
from kvtransfer.group_rooms import GroupRooms
from kvtransfer.process_group import GroupKind, Moving
from kvtransfer.protocol import CopyBytes
from kvtransfer.staging import NUM_ROOMS
from kvtransfer.tcp_door import DoorKind
from kvtransfer.tcp_frames import BatchHead, FrameError, pack_meeting
from kvtransfer.tcp_link import Arrivals, MarkDoor, TcpLink
from kvtransfer.tcp_stream import Patience, Stream


def group_door(kind: GroupKind, copy_bytes: CopyBytes, max_batch_bytes: int) -> DoorKind:
    """Bytes come by a process group for each sender."""

    def make(stream: Stream, pool: ServedPool) -> Arrivals:
        return GroupArrivals(kind, stream, pool, copy_bytes, max_batch_bytes)

    return DoorKind(kind.name, make, GroupLink)


class GroupArrivals:
    """See `Arrivals`; `meet` and `begin` come before. Used by the link's thread."""

    def __init__(
        self,
        kind: GroupKind,
        stream: Stream,
        pool: ServedPool,
        copy_bytes: CopyBytes,
        max_batch_bytes: int,
    ) -> None:
        self._kind = kind
        self._stream = stream
        self._pool: KvSource = pool.views.data.data if pool.device is None else pool.device.pool
        self._block_bytes = pool.layout.block_bytes
        self._copy_bytes = copy_bytes
        # A block is never cut.
        self._max_batch_bytes = max(max_batch_bytes, self._block_bytes)
        self._meeting = new_meeting(self._max_batch_bytes)
        self._staging = kind.new_staging(self._max_batch_bytes)
        self._rooms: GroupRooms | None = None
        # What `take` puts into its place.
        self._received: torch.Tensor | None = None

    def greeting(self) -> bytes:
        return pack_meeting(self._meeting)

    def meet(self) -> None:
        """Wait for the sender, who was greeted, to join. Raises: ConnectionLost, FrameError."""
        with self._staging.stream():
            group = receive_group(self._kind, self._meeting, self._stream)
        self._rooms = GroupRooms(group, self._staging)

    def begin(self, head: BatchHead) -> tuple[Moving, torch.Tensor]:
        """Let the bytes of an announced batch come in. Raises: FrameError, GroupFailed."""
        num_bytes = head.num_blocks * self._block_bytes
        if num_bytes > self._max_batch_bytes:
            raise FrameError(f"a batch of {num_bytes} bytes, not {self._max_batch_bytes} at most")
        assert self._rooms is not None, "the link meets first"
        room = self._staging.next_room(num_bytes)
        with self._staging.stream():
            return self._rooms.begin_receive(room), room

    def complete(self, moving: Moving, room: torch.Tensor, timeout_s: float) -> None:
        """Wait for the bytes; `take` is for these. Raises: GroupFailed."""
        with self._staging.stream():
            moving.wait(timeout_s, self._stream.has_ended)
        self._received = room

    def take(self, head: BatchHead, blocks: TaggedBlocks, patience: Patience) -> None:
        assert self._received is not None, "the link completes a batch first"
        with self._staging.stream():
            self._staging.scatter(self._received, self._pool, blocks.dst, self._copy_bytes)

    def refuse(self, head: BatchHead, patience: Patience) -> None:
        """Its bytes were received, and are overwritten by the next ones."""

    def is_still(self) -> bool:
        try:
            return self._staging.is_done()
        except DeviceFailed:
            return False

    def close(self) -> None:
        self._received = None
        if self._rooms is not None:
            self._rooms.close()


@dataclass(frozen=True, slots=True)
class _Announced:
    """A batch whose bytes are on their way."""

    head: BatchHead
    blocks: TaggedBlocks
    transfer_id: str | None
    moving: Moving
    room: torch.Tensor
    until_s: float


class GroupLink(TcpLink):
    """A link whose batches come beside the connection; the next one comes while one is copied."""

    def _take_batches(self, arrivals: Arrivals, mark_door: MarkDoor) -> None:
        assert isinstance(arrivals, GroupArrivals), "both are of one kind of door"
        arrivals.meet()
        ahead: list[_Announced] = []
        while True:
            if not ahead:
                self._stream.wait_readable()
                ahead.append(self._announced(arrivals))
            batch = ahead.pop(0)
            self._transfer_id = batch.transfer_id
            arrivals.complete(batch.moving, batch.room, batch.until_s - self._clock.now())
            if len(ahead) + 1 < NUM_ROOMS and self._stream.has_news():
                ahead.append(self._announced(arrivals))
            self._settle(batch.head, batch.blocks, arrivals, mark_door, self._patience())

    def _announced(self, arrivals: GroupArrivals) -> _Announced:
        until_s = self._clock.now() + self._batch_timeout_s
        head, blocks = self._next_batch(self._patience())
        moving, room = arrivals.begin(head)
        return _Announced(head, blocks, self._transfer_id, moving, room, until_s)
