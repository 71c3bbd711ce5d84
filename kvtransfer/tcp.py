"""Blocks between hosts, over plain TCP connections of their own.

The receiver reads block bytes from the kernel straight to their final place, the sender hands them
over from theirs: one copy out of the kernel and at most one into it. Who knows the export's token
may write; nothing is encrypted: use a network that only the cluster sees.
"""

from typing import Final

from kvtransfer.batches import PushSettings
from kvtransfer.network_transport import NetworkKind, NetworkTransport
from kvtransfer.tcp_door import NAME, DoorSettings, socket_door
from kvtransfer.tcp_sender import TcpSender
from runtime.clock import Clock

__all__ = ["NAME", "TcpTransport"]

_KIND: Final = NetworkKind(NAME, socket_door, TcpSender)


class TcpTransport(NetworkTransport):
    """Pools that are written to over the network."""

    def __init__(
        self,
        door: DoorSettings | None = None,
        settings: PushSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(_KIND, door, settings, clock)
