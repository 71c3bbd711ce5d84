"""Where pools may lie on this machine, and which transports serve them there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvtransfer.device import KvSource
from kvtransfer.tcp_door import DoorSettings
from worker.transport_names import DEFAULT_ON_GPU, DEFAULT_ON_HOST, NCCL
from worker.transports import (
    Make,
    TransportSettings,
    gpu_memory,
    makers_on_gpu,
    makers_on_host,
)

# Large enough that setting up does not count; every transport cuts it into its own batches.
NUM_BLOCKS: Final = 64
BLOCK_BYTES: Final = 1 << 20
# One generation for all: the owner of the target grants its blocks once.
GENERATION: Final = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pool lies: host memory, or that of a GPU."""

    # Index of the GPU; None: host memory.
    gpu: int | None = None

    def __str__(self) -> str:
        return "host" if self.gpu is None else f"gpu{self.gpu}"


def places_with(num_gpus: int) -> list[tuple[Place, Place]]:
    """Pairs to try, in the direction of the push.

    Host to host, each GPU to itself, and the first one to and from every other.
    """
    pairs = [(Place(), Place())]
    for gpu in range(num_gpus):
        pairs.append((Place(gpu), Place(gpu)))
        if gpu:
            pairs += [(Place(0), Place(gpu)), (Place(gpu), Place(0))]
    return pairs


def transports_at(place: Place) -> tuple[str, ...]:
    """Names of what serves a pool there, in the order in which workers try them by default."""
    first = DEFAULT_ON_HOST if place.gpu is None else DEFAULT_ON_GPU
    known = makers_at(place, DoorSettings())
    # NCCL moves host memory too, by way of a GPU; nobody would choose it for that.
    others = [name for name in known if place.gpu is not None or name != NCCL]
    return (*first, *(name for name in others if name not in first))


def makers_at(place: Place, door: DoorSettings) -> Mapping[str, Make]:
    """By name."""
    settings = TransportSettings(door=door, cluster="tandem-doctor", device_index=place.gpu or 0)
    if place.gpu is None:
        return makers_on_host(settings)
    return makers_on_gpu(settings, partial(gpu_memory, place.gpu))


def content() -> bytes:
    """What lies in the source: blocks that differ, so that none passes for another."""
    return b"".join(bytes([1 + number]) * BLOCK_BYTES for number in range(NUM_BLOCKS))


def source_at(place: Place) -> KvSource:
    """Memory to push from. Raises: ExportUnavailable, DeviceFailed."""
    if place.gpu is None:
        return memoryview(content())
    pool = gpu_memory(place.gpu).allocate(NUM_BLOCKS * BLOCK_BYTES)
    pool.write(0, content())
    return pool
