"""Blocks between processes of one host: the sender maps the receiver's pool and writes into it.

A push is a memcpy to the block's final place. Linux only. A forked child shares its parent's
kernel locks and so keeps it alive in the eyes of others: start processes with spawn.
"""

from pathlib import Path

from kvtransfer.batches import PushSettings
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import LayoutMismatch, WrongHost
from kvtransfer.host import is_of_this_machine, shared_memory_identity
from kvtransfer.layout import PoolLayout
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import ProbeReport
from kvtransfer.receiver import PoolReceiver
from kvtransfer.segment_pool import SegmentDoor, Segments, SegmentSender
from kvtransfer.sending import BlockWriter
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport

NAME = "shared_memory"


class SharedMemoryTransport:
    """Pools as files in a tmpfs that both processes see."""

    name = NAME

    def __init__(
        self,
        directory: Path = Path("/dev/shm"),
        settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_senders: int = 128,
        cluster: str = "tandem",
    ) -> None:
        self._directory = directory
        self._segments = Segments(NAME, directory, cluster)
        self._settings = settings or PushSettings()
        self._clock = clock or MonotonicClock()
        self._max_senders = max_senders

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> PoolReceiver:
        """See `Transport.create_receiver`. Removes what dead processes left in the folder first."""
        layout = PoolLayout(num_blocks, block_bytes, incarnation, self._max_senders)
        owner = PoolOwner(worker_id, incarnation)
        made = self._segments.make(layout, owner, lambda: shared_memory_identity(self._directory))
        receiver = PoolReceiver(owner, layout, made.views)
        receiver.add_door(SegmentDoor(made))
        return receiver

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        if export.host == shared_memory_identity(self._directory):
            return None
        if is_of_this_machine(export.host):
            return "another /dev/shm of this machine; share one between the containers"
        return f"the memory of {export.host} is not seen here"

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> SegmentSender:
        """See `Transport.connect`. Maps every page: a large pool takes a while."""
        own_host = shared_memory_identity(self._directory)
        if export.host != own_host:
            raise WrongHost(export.worker_id, export.host, own_host)
        if export.block_bytes != block_bytes:
            raise LayoutMismatch(
                f"worker {export.worker_id} has KV blocks of {export.block_bytes} bytes, this "
                f"worker of {block_bytes}"
            )
        joined = self._segments.join(export, sender_id)
        views = joined.layout.views(joined.memory)
        writer = BlockWriter(views, block_bytes, joined.slot, self._settings, self._clock)
        return SegmentSender(joined, writer)

    def probe(self, clock: Clock) -> ProbeReport:
        """See `Transport.probe`."""
        return measure_transport(self, clock)
