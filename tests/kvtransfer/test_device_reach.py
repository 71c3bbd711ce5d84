"""Which pools on devices a sender reaches, why not, and what it takes instead."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvtransfer.choice import connect_best
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import CopyStream
from kvtransfer.device_testing import FAKE_DEVICE, FakeDevice
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import DeviceFailed, ExportUnavailable, LayoutMismatch
from kvtransfer.host import DeviceHost, device_host
from kvtransfer.receiver import PoolReceiver, receive_by
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.testing import PATIENCE_S, moves_of, next_incarnation, patterned_pool
from runtime.clock import MonotonicClock

NUM_BLOCKS, BLOCK_BYTES = 4, 512
SHM = Path("/dev/shm")


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def receiver(device: FakeDevice) -> Iterator[PoolReceiver]:
    transport = CudaIpcTransport(lambda: device)
    made = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", next_incarnation())
    yield made
    made.close()


def test_what_keeps_a_sender_from_a_pool_is_told_with_what_to_do(
    device: FakeDevice, receiver: PoolReceiver
) -> None:
    transport, export = CudaIpcTransport(lambda: device), receiver.export()
    here = device_host(SHM, FAKE_DEVICE)
    assert transport.can_reach(export) is None
    kernel = here.shared_memory.partition("/")[0]
    reasons = {
        "not of this machine": replace(here, shared_memory="another-kernel/1:1"),
        "another /dev/shm": replace(here, shared_memory=f"{kernel}/77:1"),
        "shareProcessNamespace": replace(here, pid_namespace="7"),
        "--ipc=container": replace(here, ipc_namespace="7"),
        "no peer access between GPU-fake-0 and GPU-fake-1": replace(here, device_id="GPU-fake-1"),
    }
    for reason, host in reasons.items():
        problem = transport.can_reach(replace(export, host=str(host)))
        assert problem is not None
        assert reason in problem


def test_another_device_of_the_machine_is_reached_where_it_is_a_peer(
    receiver: PoolReceiver,
) -> None:
    neighbour = FakeDevice("GPU-fake-1", peers=[FAKE_DEVICE])
    transport = CudaIpcTransport(lambda: neighbour)
    export = receiver.export()
    sender = transport.connect(export, sender_id="prefill-1#1", block_bytes=BLOCK_BYTES)
    receiver.expect([1], [1])
    pool = transport.new_pool(bytes(patterned_pool(1, BLOCK_BYTES, seed=2)))
    sender.push(pool, moves_of((0,), (1,)), timeout_s=PATIENCE_S)
    assert receiver.poll([1], [1]).is_complete
    sender.close()


def test_where_a_pool_lies_is_read_back_from_its_name() -> None:
    here = device_host(SHM, "GPU-1")
    assert DeviceHost.parse(str(here)) == here
    assert DeviceHost.parse("elsewhere") is None
    assert DeviceHost.parse("") is None


def test_without_a_device_the_transport_says_so_and_nothing_else_happens() -> None:
    def no_device() -> FakeDevice:
        raise ExportUnavailable("no CUDA device is usable", "check nvidia-smi")

    transport = CudaIpcTransport(no_device)
    report = transport.probe(MonotonicClock())
    assert (report.is_available, report.bytes_per_s) == (False, None)
    assert "check nvidia-smi" in report.detail


def test_where_the_device_is_of_no_use_the_blocks_go_over_tcp(
    device: FakeDevice, receiver: PoolReceiver
) -> None:
    staged = StagedTcpTransport(lambda: device)
    receiver.also_serve([staged])

    def no_device() -> FakeDevice:
        raise ExportUnavailable("no CUDA device is usable", "check nvidia-smi")

    class LostDevice(FakeDevice):
        def new_stream(self) -> CopyStream:
            raise DeviceFailed("cudaStreamCreateWithFlags", "CUDA error 999", "restart")

    for transport, problem in (
        (CudaIpcTransport(no_device), "check nvidia-smi"),
        (CudaIpcTransport(LostDevice), "CUDA error 999"),
    ):
        path = connect_best(
            {"cuda_ipc": transport, "tcp": staged},
            receiver.export(),
            sender_id="prefill-1#1",
            block_bytes=BLOCK_BYTES,
        )
        assert path.transport == "tcp"
        assert problem in path.reason
        path.sender.close()


def test_blocks_that_are_no_whole_number_of_words_are_refused() -> None:
    with pytest.raises(LayoutMismatch, match="words"):
        CudaIpcTransport(FakeDevice).create_receiver(1, 12, "decode-0", next_incarnation())


def test_a_file_of_the_other_transport_is_not_joined() -> None:
    device = FakeDevice()
    with_data, on_device = SharedMemoryTransport(), CudaIpcTransport(lambda: device)
    hosted = with_data.create_receiver(2, 64, "decode-mixed-up", next_incarnation())
    try:
        lie = replace(
            hosted.export(), transport="cuda_ipc", host=str(device_host(SHM, FAKE_DEVICE))
        )
        with pytest.raises(LayoutMismatch, match="another transport"):
            on_device.connect(lie, sender_id="p", block_bytes=64)
    finally:
        hosted.close()


def test_a_transport_over_host_memory_does_not_take_a_pool_on_a_device() -> None:
    transport = SharedMemoryTransport()
    receiver = receive_by([transport], PoolOwner("decode-host", next_incarnation()), 2, 64)
    sender = transport.connect(receiver.export(), sender_id="p", block_bytes=64)
    receiver.expect([0], [1])
    with pytest.raises(LayoutMismatch, match="device"):
        sender.push(FakeDevice().allocate(128), moves_of((0,), (0,)), timeout_s=1.0)
    sender.close()
    receiver.close()
