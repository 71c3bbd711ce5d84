"""Blocks by send and recv of torch.distributed: NCCL between GPUs, gloo between CPUs.

One process group for each pair of lives, beside a TCP connection that announces and answers.
Importing this imports torch.
"""

from kvtransfer.batches import PushSettings
from kvtransfer.doors import ServedPool
from kvtransfer.errors import ExportUnavailable
from kvtransfer.group_door import group_door
from kvtransfer.group_sender import GroupSender
from kvtransfer.network_transport import NetworkKind, NetworkTransport
from kvtransfer.process_group import GroupKind, require
from kvtransfer.protocol import KvSender
from kvtransfer.tcp_door import DoorSettings, TcpDoor
from runtime.clock import Clock
from scheduling.kv_export import KvExport


class GroupTransport(NetworkTransport):
    """Pools that senders write to through process groups."""

    def __init__(
        self,
        group: GroupKind,
        door: DoorSettings | None = None,
        settings: PushSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        settings = settings or PushSettings()
        most = settings.max_batch_bytes

        def make_sender(
            export: KvExport, sender_id: str, settings: PushSettings, clock: Clock
        ) -> KvSender:
            return GroupSender(group, export, sender_id, settings, clock)

        kind = NetworkKind(
            group.name,
            lambda copy_bytes: group_door(group, copy_bytes, most),
            make_sender,
            lambda: require(group),
        )
        super().__init__(kind, door, settings, clock)
        self._group = group

    def open_door(self, pool: ServedPool, number: int) -> TcpDoor:
        """See `DoorTransport.open_door`."""
        if pool.device is not None and not self._group.takes_device_pools:
            raise ExportUnavailable(
                f"{self.name} moves host memory, and this KV pool lies on a device",
                f"take {self.name} out of transports",
            )
        return super().open_door(pool, number)

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        return self._group.problem()
