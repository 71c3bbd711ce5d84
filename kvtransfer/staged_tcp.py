"""TCP between GPU pools: blocks go through pinned host memory on both sides.

The honest fallback where no GPU reaches the other: each byte crosses two buses and the kernel.
"""

from collections.abc import Callable
from dataclasses import replace

from kvtransfer import tcp
from kvtransfer.batches import PushSettings
from kvtransfer.device import DeviceMemory, DevicePool
from kvtransfer.doors import PoolOwner, ServedPool
from kvtransfer.pinned_staging import StagedSender
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import ProbeReport
from kvtransfer.receiver import PoolReceiver, device_receiver
from kvtransfer.tcp_door import DoorSettings, TcpDoor
from kvtransfer.word_checksum import word_checksum
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport


class StagedTcpTransport:
    """Pools in device memory that senders reach by host and port. See `DoorTransport`."""

    name = tcp.NAME

    def __init__(
        self,
        memory: Callable[[], DeviceMemory],
        door: DoorSettings | None = None,
        settings: PushSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`memory` is asked for when it is needed; it raises ExportUnavailable without a device."""
        self._memory = memory
        self._door = door or DoorSettings()
        # A pool on a device is verified there, whichever way its blocks came.
        self._settings = replace(settings or PushSettings(), checksum=word_checksum)
        self._clock = clock or MonotonicClock()
        self._inner = tcp.TcpTransport(self._door, self._settings, self._clock)

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> PoolReceiver:
        """See `Transport.create_receiver`. The pool is memory of the device."""
        owner = PoolOwner(worker_id, incarnation)
        receiver = device_receiver(owner, num_blocks, block_bytes, self._memory())
        receiver.also_serve([self])
        return receiver

    def open_door(self, pool: ServedPool, number: int) -> TcpDoor:
        """See `DoorTransport.open_door`."""
        return self._inner.open_door(pool, number)

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        return self._inner.can_reach(export)

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> StagedSender:
        """See `Transport.connect`."""
        memory = self._memory()
        sender = self._inner.connect(export, sender_id=sender_id, block_bytes=block_bytes)
        room_bytes = self._settings.max_batch_bytes
        return StagedSender(sender, memory, block_bytes, room_bytes, self._clock)

    def probe(self, clock: Clock) -> ProbeReport:
        """See `Transport.probe`."""
        # A port of its own: the configured one may be in use.
        door = replace(self._door, port=0)
        own = StagedTcpTransport(self._memory, door, self._settings, self._clock)
        return measure_transport(own, clock, own.new_pool)

    def new_pool(self, content: bytes) -> DevicePool:
        """Device memory to push from, with these bytes in it. Raises: ExportUnavailable."""
        pool = self._memory().allocate(len(content))
        pool.write(0, content)
        return pool
