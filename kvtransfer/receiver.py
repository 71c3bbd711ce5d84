"""The receiver of every transport: grants and arrivals of one pool, behind one door or several."""

import mmap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvtransfer.batches import ChecksumsOf, host_checksums
from kvtransfer.checksum import block_checksum
from kvtransfer.device import CopyStream, DeviceMemory, KvSource
from kvtransfer.doors import Door, DoorTransport, OnDevice, PoolOwner, ServedPool
from kvtransfer.errors import ExportUnavailable
from kvtransfer.layout import PoolLayout, PoolViews, block_index
from kvtransfer.probe import num_scratch_blocks
from kvtransfer.protocol import Arrival, Ids, KvReceiver, Transport
from kvtransfer.receiving import ReceivedBlocks
from kvtransfer.segment import populate
from scheduling.kv_export import SCRATCH_GENERATION, KvDoor, KvExport


class PoolReceiver:
    """See `KvReceiver`."""

    def __init__(
        self,
        owner: PoolOwner,
        layout: PoolLayout,
        views: PoolViews,
        device: OnDevice | None = None,
    ) -> None:
        door_of = np.zeros(layout.num_blocks, np.uint8)
        self.pool = ServedPool(owner, layout, views, door_of, device)
        # What computes the checksums of a pool on a device.
        self._stream: CopyStream | None = None
        if device is None:
            data = views.data.reshape(layout.num_blocks, layout.block_bytes)
            checksums_of = host_checksums(data, block_checksum)
        else:
            self._stream = device.memory.new_stream()
            checksums_of = _device_checksums(self._stream, device, layout.block_bytes)
        self._blocks = ReceivedBlocks(views, checksums_of)
        self._doors: list[Door] = []
        self._num_scratch_blocks = 0

    def set_scratch_aside(self, num_blocks: int) -> None:
        """Take the last blocks out of use; see `KvExport.num_scratch_blocks`."""
        self._num_scratch_blocks = num_blocks
        ids = range(self._num_own_blocks, self.pool.layout.num_blocks)
        self._blocks.expect(ids, [SCRATCH_GENERATION] * num_blocks)

    @property
    def _num_own_blocks(self) -> int:
        return self.pool.layout.num_blocks - self._num_scratch_blocks

    def add_door(self, door: Door) -> None:
        """Doors are numbered in the order of these calls, from 0."""
        self._doors.append(door)

    def also_serve(self, transports: Sequence[DoorTransport]) -> None:
        """Open a door for each. Raises: ExportUnavailable, and then everything is closed."""
        try:
            for transport in transports:
                self.add_door(transport.open_door(self.pool, len(self._doors)))
        except BaseException:
            self.close()
            raise

    def export(self) -> KvExport:
        first, *others = (door.export() for door in self._doors)
        alternatives = (KvDoor(o.transport, o.address, o.host, o.token) for o in others)
        return replace(
            first,
            alternatives=tuple(alternatives),
            num_scratch_blocks=self._num_scratch_blocks,
        )

    def buffer(self) -> memoryview:
        if self.pool.device is not None:
            raise ValueError("this KV pool lies on a device; ask for memory()")
        num_bytes = self._num_own_blocks * self.pool.layout.block_bytes
        return self.pool.views.data.data[:num_bytes]

    def memory(self) -> KvSource:
        return self.buffer() if self.pool.device is None else self.pool.device.pool

    def expect(self, block_ids: Ids, generations: Ids) -> None:
        self._blocks.expect(block_ids, generations)
        self.pool.door_of[np.asarray(block_ids, np.int64)] = 0

    def poll(self, block_ids: Ids, generations: Ids) -> Arrival:
        arrival = self._blocks.poll(block_ids, generations)
        if not (arrival.is_complete and len(block_ids)):
            return arrival
        number = int(self.pool.door_of[np.asarray(block_ids, np.int64)].max())
        return replace(arrival, transport=self._doors[number].export().transport)

    def revoke(self, block_ids: Ids) -> None:
        self._blocks.revoke(block_ids)

    def quarantine_clear(self, block_ids: Ids) -> bool:
        ids = block_index(block_ids, self.pool.layout.num_blocks)
        return not any(door.is_writing(ids) for door in self._doors)

    def forget_sender(self, sender_id: str) -> bool:
        return all(door.forget_sender(sender_id) for door in self._doors)

    def close(self) -> None:
        for door in self._doors:
            door.close()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _device_checksums(stream: CopyStream, device: OnDevice, block_bytes: int) -> ChecksumsOf:
    return lambda block_ids: stream.checksums(device.pool, block_bytes, block_ids)


def private_receiver(owner: PoolOwner, num_blocks: int, block_bytes: int) -> PoolReceiver:
    """A pool in this process's own memory, without a door yet."""
    layout = PoolLayout(num_blocks, block_bytes, owner.incarnation, max_senders=1)
    memory = mmap.mmap(-1, layout.total_bytes)
    populate(memory)
    return PoolReceiver(owner, layout, layout.views(memory))


def device_receiver(
    owner: PoolOwner, num_blocks: int, block_bytes: int, memory: DeviceMemory
) -> PoolReceiver:
    """A pool in device memory that no other process maps, without a door yet.

    Raises: ExportUnavailable.
    """
    layout = PoolLayout(num_blocks, block_bytes, owner.incarnation, max_senders=1, has_data=False)
    views = layout.views(mmap.mmap(-1, layout.total_bytes))
    pool = memory.allocate(layout.data_bytes)
    return PoolReceiver(owner, layout, views, OnDevice(memory, pool))


def receive_by(
    transports: Sequence[Transport],
    owner: PoolOwner,
    num_blocks: int,
    block_bytes: int,
    memory: DeviceMemory | None = None,
) -> KvReceiver:
    """One pool that senders of all these transports reach, and scratch blocks behind it.

    `memory` is where it lies, if not in the host's.

    Raises: ExportUnavailable.
    """
    num_scratch = num_scratch_blocks(block_bytes)
    receiver = _receiver_of(transports, owner, num_blocks + num_scratch, block_bytes, memory)
    receiver.set_scratch_aside(num_scratch)
    return receiver


def _receiver_of(
    transports: Sequence[Transport],
    owner: PoolOwner,
    num_blocks: int,
    block_bytes: int,
    memory: DeviceMemory | None,
) -> PoolReceiver:
    doors = [transport for transport in transports if isinstance(transport, DoorTransport)]
    hosts = [transport for transport in transports if not isinstance(transport, DoorTransport)]
    if len(hosts) > 1:
        names = " and ".join(transport.name for transport in hosts)
        raise ExportUnavailable(f"{names} each bring the pool's memory", "name only one of them")
    if not hosts:
        if memory is None:
            receiver = private_receiver(owner, num_blocks, block_bytes)
        else:
            receiver = device_receiver(owner, num_blocks, block_bytes, memory)
        receiver.also_serve(doors)
        return receiver
    hosted = hosts[0].create_receiver(num_blocks, block_bytes, owner.worker_id, owner.incarnation)
    assert isinstance(hosted, PoolReceiver), "every receiver is one; the protocol is for its users"
    if memory is not None and hosted.pool.device is None:
        hosted.close()
        raise ExportUnavailable(
            f"{hosts[0].name} keeps the pool in host memory", "take it out of transports"
        )
    hosted.also_serve(doors)
    return hosted
