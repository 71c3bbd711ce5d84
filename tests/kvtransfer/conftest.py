"""Every transport under test. A new one joins the contract by a row in `TRANSPORTS`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kvtransfer.batches import PushSettings, plain_copy
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.cuda_memory import CudaMemory
from kvtransfer.device import DeviceMemory
from kvtransfer.device_testing import FakeDevice, FaultyDevice
from kvtransfer.errors import ExportUnavailable
from kvtransfer.group_transport import GroupTransport
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.nixl import NixlTransport
from kvtransfer.process_group import Gloo
from kvtransfer.protocol import Transport
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import KV_PORT, TransportPair, own_loopback_host
from kvtransfer.zerocopy import ZeroCopy
from runtime.clock import Clock


def make_tcp(
    settings: PushSettings | None = None,
    clock: Clock | None = None,
    max_senders: int = 128,
    port: int = KV_PORT,
) -> TcpTransport:
    """On one port of an address of our own: a restarted receiver is found again."""
    door = DoorSettings(own_loopback_host(), port=port, max_senders=max_senders)
    return TcpTransport(door, settings, clock)


def make_tcp_in_place(
    settings: PushSettings | None = None,
    clock: Clock | None = None,
    max_senders: int = 128,
    port: int = KV_PORT,
) -> TcpTransport:
    """With every send the kernel is asked to make no copy, though on this machine it does."""
    settings = replace(settings or PushSettings(), zerocopy=ZeroCopy.INSIST)
    return make_tcp(settings, clock, max_senders, port)


def make_nixl(
    settings: PushSettings | None = None,
    clock: Clock | None = None,
    max_senders: int = 128,
    port: int = KV_PORT,
) -> NixlTransport:
    """UCX stays on the loopback device."""
    pytest.importorskip("nixl_cu13", reason="the extra `nixl` is not installed")
    os.environ.setdefault("UCX_NET_DEVICES", "lo")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    door = DoorSettings(own_loopback_host(), port=port, max_senders=max_senders)
    return NixlTransport(door, settings, clock)


def make_gloo(
    settings: PushSettings | None = None,
    clock: Clock | None = None,
    max_senders: int = 128,
    port: int = KV_PORT,
) -> GroupTransport:
    """The code of NCCL as well, but for the memory that is sent."""
    door = DoorSettings(own_loopback_host(), port=port, max_senders=max_senders)
    return GroupTransport(Gloo(), door, settings, clock)


def make_cuda_ipc(
    settings: PushSettings | None = None, clock: Clock | None = None, max_senders: int = 128
) -> CudaIpcTransport:
    """Over memory of the host that stands for a device's."""
    settings = settings or PushSettings()
    device = FakeDevice(copy_bytes=settings.copy_bytes)
    return CudaIpcTransport(
        lambda: device, settings=settings, clock=clock, max_senders=max_senders, teardown_s=0.0
    )


def make_staged_tcp(
    settings: PushSettings | None = None,
    clock: Clock | None = None,
    max_senders: int = 128,
    port: int = KV_PORT,
) -> StagedTcpTransport:
    """Between pools of such a device."""
    settings = settings or PushSettings()
    device = FakeDevice(copy_bytes=settings.copy_bytes)
    door = DoorSettings(own_loopback_host(), port=port, max_senders=max_senders)
    return StagedTcpTransport(lambda: device, door, settings, clock)


def make_staged_tcp_on_gpu(
    settings: PushSettings | None = None,
    clock: Clock | None = None,
    max_senders: int = 128,
    port: int = KV_PORT,
) -> StagedTcpTransport:
    """Between pools of the first CUDA device."""
    settings = settings or PushSettings()
    device = first_gpu(settings)
    door = DoorSettings(own_loopback_host(), port=port, max_senders=max_senders)
    return StagedTcpTransport(lambda: device, door, settings, clock)


def first_gpu(settings: PushSettings) -> DeviceMemory:
    """With the faults of a test in its copies."""
    try:
        device = CudaMemory.of_device(0)
    except ExportUnavailable as error:
        pytest.skip(str(error))
    is_faulty = settings.copy_bytes is not plain_copy
    return FaultyDevice(device, settings.copy_bytes) if is_faulty else device


def make_cuda_ipc_on_gpu(
    settings: PushSettings | None = None, clock: Clock | None = None, max_senders: int = 128
) -> CudaIpcTransport:
    """Over the first CUDA device."""
    settings = settings or PushSettings()
    device = first_gpu(settings)
    return CudaIpcTransport(
        lambda: device, settings=settings, clock=clock, max_senders=max_senders, teardown_s=0.0
    )


TRANSPORTS: dict[str, Callable[..., Transport]] = {
    "loopback": LoopbackTransport,
    "shared_memory": SharedMemoryTransport,
    "tcp": make_tcp,
    "tcp_in_place": make_tcp_in_place,
    "nixl": make_nixl,
    "gloo": make_gloo,
    "cuda_ipc": make_cuda_ipc,
    "staged_tcp": make_staged_tcp,
}
ON_GPU = [
    pytest.param(make_cuda_ipc_on_gpu, id="cuda_ipc_on_gpu", marks=pytest.mark.gpu),
    pytest.param(make_staged_tcp_on_gpu, id="staged_tcp_on_gpu", marks=pytest.mark.gpu),
]


@pytest.fixture(
    scope="session",
    params=[*(pytest.param(make, id=name) for name, make in TRANSPORTS.items()), *ON_GPU],
)
def make_transport(request: pytest.FixtureRequest) -> Callable[..., Transport]:
    made: Callable[..., Transport] = request.param
    return made


@pytest.fixture
def make_pair(
    make_transport: Callable[..., Transport],
) -> Iterator[Callable[..., TransportPair]]:
    pairs: list[TransportPair] = []

    def make(**options: object) -> TransportPair:
        pairs.append(TransportPair(make_transport(**options)))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., TransportPair]) -> TransportPair:
    return make_pair(settings=PushSettings(checksum_fraction=1.0))
