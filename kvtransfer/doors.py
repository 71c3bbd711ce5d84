"""One pool, several doors: each transport lets its senders in; grants and arrivals are shared."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvtransfer.device import DeviceMemory, DevicePool
from kvtransfer.layout import PoolLayout, PoolViews
from kvtransfer.protocol import Transport
from scheduling.kv_export import KvExport


@dataclass(frozen=True, slots=True)
class PoolOwner:
    """Which life of which worker a pool belongs to."""

    worker_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Where the blocks lie that are not in host memory."""

    memory: DeviceMemory
    # [num_blocks * block_bytes]
    pool: DevicePool


@dataclass(frozen=True, slots=True, eq=False)
class ServedPool:
    """A pool as a door in its owner's process sees it."""

    owner: PoolOwner
    layout: PoolLayout
    views: PoolViews
    # [num_blocks]: the number of the door through which a block's bytes came. A door in this
    # process writes its own number before it publishes; what other processes write is door 0.
    door_of: npt.NDArray[np.uint8]
    # None: the blocks are `views.data`.
    device: OnDevice | None = None


class Door(Protocol):
    """One transport's way into a pool. Calls come from one thread."""

    def export(self) -> KvExport:
        """How a sender finds this door; names no other."""
        ...

    def is_writing(self, block_ids: npt.NDArray[np.int64]) -> bool:
        """Whether a sender may still write into one of these revoked blocks."""
        ...

    def forget_sender(self, sender_id: str) -> bool:
        """See `KvReceiver.forget_sender`."""
        ...

    def close(self) -> None:
        """Let nobody in, and send away who is there. Twice is fine."""
        ...


@runtime_checkable
class DoorTransport(Transport, Protocol):
    """A transport that serves memory which it did not allocate."""

    def open_door(self, pool: ServedPool, number: int) -> Door:
        """Raises: ExportUnavailable."""
        ...
