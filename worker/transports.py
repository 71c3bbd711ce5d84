"""Which transports a worker may use, and what each needs; tensors are imported only for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Final

from kvtransfer.batches import PushSettings
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import DeviceMemory
from kvtransfer.errors import ExportUnavailable
from kvtransfer.nixl import NixlTransport
from kvtransfer.nixl_agent import require_nixl
from kvtransfer.protocol import Transport
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.zerocopy import ZeroCopy
from runtime.errors import StartupError
from runtime.worker_config import WorkerConfig
from worker.transport_names import (
    CUDA_IPC,
    GLOO,
    NCCL,
    NIXL,
    SHARED_MEMORY,
    TCP,
    transport_names,
)

# Doors of one rank, where ports are given.
_PORTS_OF_RANK: Final = 4
# A copy on a GPU is hundreds of times faster than one over a network, and so is its grain.
_GPU_BATCH_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """What all transports of a process have in common."""

    push: PushSettings = field(default_factory=PushSettings)
    door: DoorSettings = field(default_factory=DoorSettings)
    cluster: str = "tandem"
    # Of the GPU that a backend of torch stages on.
    device_index: int = 0

    def door_at(self, offset: int) -> DoorSettings:
        """Each transport has a port of its own, where ports are given."""
        port = self.door.port
        return replace(self.door, port=port + offset) if port else self.door


Make = Callable[[], Transport]


def makers_on_host(settings: TransportSettings) -> dict[str, Make]:
    """Transports between pools in host memory, by name; making one imports what it needs."""
    return {
        SHARED_MEMORY: lambda: SharedMemoryTransport(
            settings=settings.push, cluster=settings.cluster
        ),
        TCP: lambda: TcpTransport(settings.door, settings.push),
        NIXL: lambda: _nixl(settings),
        GLOO: lambda: _group(GLOO, settings, 2),
        NCCL: lambda: _group(NCCL, settings, 3),
    }


def makers_on_gpu(
    settings: TransportSettings, memory: Callable[[], DeviceMemory]
) -> dict[str, Make]:
    """Transports between pools in GPU memory, by name."""
    push = replace(settings.push, max_batch_bytes=_GPU_BATCH_BYTES)
    return {
        CUDA_IPC: lambda: CudaIpcTransport(memory, settings=push, cluster=settings.cluster),
        TCP: lambda: StagedTcpTransport(memory, settings.door, settings.push),
        NCCL: lambda: _group(NCCL, settings, 3),
    }


@cache
def gpu_memory(device_index: int) -> DeviceMemory:
    """Of one device of this process. Raises: ExportUnavailable."""
    from kvtransfer.cuda_memory import CudaMemory

    return CudaMemory.of_device(device_index)


def transports_of(config: WorkerConfig, rank: int = 0) -> dict[str, Transport]:
    """Of one rank, by name, in the order of the settings. Raises: StartupError."""
    settings = TransportSettings(
        PushSettings(
            checksum_fraction=config.kv_checksum_fraction,
            zerocopy=ZeroCopy.NEVER if config.kv_tcp_zerocopy == "never" else ZeroCopy.AUTO,
        ),
        DoorSettings(
            host=config.kv_host or config.host,
            port=config.kv_port + rank * _PORTS_OF_RANK if config.kv_port else 0,
            advertise_host=config.reachable_kv_host,
        ),
        config.cluster_name,
        rank,
    )
    if config.device == "cuda":
        makers = makers_on_gpu(settings, partial(gpu_memory, rank))
    else:
        makers = makers_on_host(settings)
    try:
        return {name: makers[name]() for name in transport_names(config)}
    except ExportUnavailable as error:
        raise StartupError(str(error)) from error


def _nixl(settings: TransportSettings) -> Transport:
    require_nixl()
    return NixlTransport(settings.door_at(1), settings.push)


def _group(name: str, settings: TransportSettings, offset: int) -> Transport:
    from kvtransfer.group_transport import GroupTransport
    from kvtransfer.process_group import Gloo, Nccl, require

    kind = Gloo() if name == GLOO else Nccl(f"cuda:{settings.device_index}")
    require(kind)
    return GroupTransport(kind, settings.door_at(offset), settings.push)
