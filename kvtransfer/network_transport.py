"""What transports over the network share: a door of their own into a pool, and a way to dial it.

They differ in the kind of door and of sender, and in what must be installed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvtransfer.batches import PushSettings
from kvtransfer.doors import PoolOwner, ServedPool
from kvtransfer.errors import LayoutMismatch
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import CopyBytes, KvSender, ProbeReport
from kvtransfer.receiver import PoolReceiver, private_receiver
from kvtransfer.tcp_door import DoorKind, DoorSettings, TcpDoor
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport


def nothing_to_require() -> None:
    """For transports that need nothing but sockets."""


@dataclass(frozen=True, slots=True)
class NetworkKind:
    """What tells one transport over the network from another."""

    name: str
    make_door: Callable[[CopyBytes], DoorKind]
    # Export, id of the sender's life, settings, clock.
    make_sender: Callable[[KvExport, str, PushSettings, Clock], KvSender]
    # Raises: ExportUnavailable where something is not installed.
    require: Callable[[], None] = nothing_to_require


class NetworkTransport:
    """Pools of a process's own memory that senders reach by host and port. See `Transport`."""

    def __init__(
        self,
        kind: NetworkKind,
        door: DoorSettings | None = None,
        settings: PushSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._kind = kind
        self._door = door or DoorSettings()
        self._settings = settings or PushSettings()
        self._clock = clock or MonotonicClock()

    @property
    def name(self) -> str:
        """See `Transport.name`."""
        return self._kind.name

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> PoolReceiver:
        """See `Transport.create_receiver`. The pool is this process's own memory."""
        receiver = private_receiver(PoolOwner(worker_id, incarnation), num_blocks, block_bytes)
        receiver.also_serve([self])
        return receiver

    def open_door(self, pool: ServedPool, number: int) -> TcpDoor:
        """See `DoorTransport.open_door`."""
        self._kind.require()
        kind = self._kind.make_door(self._settings.copy_bytes)
        return TcpDoor(pool, number, kind, self._door, self._clock)

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        return None

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> KvSender:
        """See `Transport.connect`."""
        self._kind.require()
        if export.transport != self.name:
            raise LayoutMismatch(f"{export.address!r} is not the address of such an export")
        if export.block_bytes != block_bytes:
            raise LayoutMismatch(
                f"worker {export.worker_id} has KV blocks of {export.block_bytes} bytes, this "
                f"worker of {block_bytes}"
            )
        return self._kind.make_sender(export, sender_id, self._settings, self._clock)

    def probe(self, clock: Clock) -> ProbeReport:
        """See `Transport.probe`."""
        # A port of its own: the configured one may be in use.
        door = replace(self._door, port=0)
        return measure_transport(
            NetworkTransport(self._kind, door, self._settings, self._clock), clock
        )
