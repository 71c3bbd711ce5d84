"""Which transports a worker may use, and what each needs; tensors are imported only for a GPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Final

from kvtransfer import cuda_ipc, nixl, shared_memory, tcp
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

# What a worker takes unless it is told otherwise.
DEFAULT_ON_HOST: Final = (shared_memory.NAME, tcp.NAME)
DEFAULT_ON_GPU: Final = (cuda_ipc.NAME, tcp.NAME)
GLOO: Final = "gloo"
NCCL: Final = "nccl"
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
        shared_memory.NAME: lambda: SharedMemoryTransport(
            settings=settings.push, cluster=settings.cluster
        ),
        tcp.NAME: lambda: TcpTransport(settings.door, settings.push),
        nixl.NAME: lambda: _nixl(settings),
        GLOO: lambda: _group(GLOO, settings, 2),
        NCCL: lambda: _group(NCCL, settings, 3),
    }


def makers_on_gpu(
    settings: TransportSettings, memory: Callable[[], DeviceMemory]
) -> dict[str, Make]:
    """Transports between pools in GPU memory, by name."""
    push = replace(settings.push, max_batch_bytes=_GPU_BATCH_BYTES)
    return {
        cuda_ipc.NAME: lambda: CudaIpcTransport(memory, settings=push, cluster=settings.cluster),
        tcp.NAME: lambda: StagedTcpTransport(memory, settings.door, settings.push),
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
    on_host = makers_on_host(settings)
    on_gpu = makers_on_gpu(settings, partial(gpu_memory, rank))
    if config.device == "cpu":
        return _chosen(config.transports, on_host, on_gpu, "cuda")
    is_named = "transports" in config.model_fields_set
    return _chosen(config.transports if is_named else DEFAULT_ON_GPU, on_gpu, on_host, "cpu")


def _chosen(
    names: tuple[str, ...],
    makers: Mapping[str, Make],
    of_other_device: Mapping[str, Make],
    other_device: str,
) -> dict[str, Transport]:
    chosen: dict[str, Transport] = {}
    for name in names:
        if name in makers:
            try:
                chosen[name] = makers[name]()
            except ExportUnavailable as error:
                raise StartupError(str(error)) from error
        elif name in of_other_device:
            raise StartupError(
                f"transport {name!r} is for workers with --device {other_device}; use one of "
                f"{', '.join(makers)}"
            )
        else:
            raise StartupError(f"transport {name!r} is unknown; use one of {', '.join(makers)}")
    return chosen


def _nixl(settings: TransportSettings) -> Transport:
    require_nixl()
    return NixlTransport(settings.door_at(1), settings.push)


def _group(name: str, settings: TransportSettings, offset: int) -> Transport:
    from kvtransfer.group_transport import GroupTransport
    from kvtransfer.process_group import Gloo, Nccl, require

    kind = Gloo() if name == GLOO else Nccl(f"cuda:{settings.device_index}")
    require(kind)
    return GroupTransport(kind, settings.door_at(offset), settings.push)
