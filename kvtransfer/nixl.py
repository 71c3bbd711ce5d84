"""Blocks by NIXL: one-sided writes over what UCX finds, asked for and answered over TCP.

Optional: needs the extra `nixl`. Runs without a GPU as well.
"""

from typing import Final

from kvtransfer.batches import PushSettings
from kvtransfer.network_transport import NetworkKind, NetworkTransport
from kvtransfer.nixl_agent import require_nixl
from kvtransfer.nixl_door import NAME, nixl_door
from kvtransfer.nixl_sender import NixlSender
from kvtransfer.tcp_door import DoorSettings
from runtime.clock import Clock

__all__ = ["NAME", "NixlTransport"]

_KIND: Final = NetworkKind(NAME, nixl_door, NixlSender, require_nixl)


class NixlTransport(NetworkTransport):
    """Pools that senders write to through NIXL agents."""

    def __init__(
        self,
        door: DoorSettings | None = None,
        settings: PushSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(_KIND, door, settings, clock)
