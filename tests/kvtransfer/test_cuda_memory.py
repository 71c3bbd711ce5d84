"""What is said to the CUDA runtime, and what becomes of its errors; no driver is needed."""

import gc

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.cuda_checksum import block_checksums
from kvtransfer.cuda_memory import CudaMemory, CudaStream
from kvtransfer.cuda_runtime import CudaRuntime, load_library
from kvtransfer.cuda_testing import FakeCudart
from kvtransfer.device import HANDLE_BYTES, ByteRun
from kvtransfer.device_writing import wait_for_copies
from kvtransfer.errors import DeviceFailed, ExportUnavailable
from kvtransfer.word_checksum import word_checksum
from runtime.clock import ManualClock, MonotonicClock

IDS = ("GPU-a", "GPU-b", "GPU-c")


@pytest.fixture
def library() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def memory(library: FakeCudart) -> CudaMemory:
    return CudaMemory(CudaRuntime(library, 1), 1, IDS)


def another_process(library: FakeCudart) -> CudaMemory:
    """Over the same device, with nothing of its own yet."""
    return CudaMemory(CudaRuntime(library, 1), 1, IDS)


def test_every_call_names_its_device_first(library: FakeCudart, memory: CudaMemory) -> None:
    pool = memory.allocate(64)
    calls = library.calls
    assert all(calls[i] == ("cudaSetDevice", (1,)) for i in range(0, len(calls), 2))
    assert library.names() == ["cudaMalloc", "cudaMemset", "cudaDeviceSynchronize"]
    pool.close()
    assert library.names()[-1] == "cudaFree"


def test_what_was_written_is_read_back_and_new_memory_is_clear(memory: CudaMemory) -> None:
    pool = memory.allocate(64)
    assert pool.read(0, 64) == bytes(64)
    pool.write(8, b"tandem")
    assert pool.read(6, 10) == b"\0\0tandem\0\0"


def test_a_copy_begins_after_what_the_engine_has_queued_and_ends_with_an_event(
    library: FakeCudart, memory: CudaMemory
) -> None:
    source, target = memory.allocate(64), memory.allocate(64)
    source.write(0, bytes(range(64)))
    stream = memory.new_stream()
    library.calls.clear()
    stream.begin(target, source, [ByteRun(0, 32, 16), ByteRun(48, 0, 8)])
    assert library.names() == [
        "cudaEventRecord",
        "cudaStreamWaitEvent",
        "cudaMemcpyBatchAsync",
        "cudaEventRecord",
    ]
    records = [arguments for name, arguments in library.calls if name == "cudaEventRecord"]
    (copies,) = [arguments for name, arguments in library.calls if "Memcpy" in name]
    # The engine's is the default stream, the other one our own.
    assert records[0][1] == 0
    assert records[1][1] == copies[-1] != 0
    assert target.read(32, 16) == bytes(range(16))
    assert target.read(0, 8) == bytes(range(48, 56))
    stream.close()
    stream.close()
    assert library.names().count("cudaStreamDestroy") == 3  # and those of two reads


def test_an_end_that_is_not_there_yet_is_no_error_and_leaves_none_behind(
    library: FakeCudart, memory: CudaMemory
) -> None:
    stream = memory.new_stream()
    stream.begin(memory.allocate(8), memory.allocate(8), [])
    library.num_not_ready = 2
    library.calls.clear()
    assert [stream.is_done(), stream.is_done(), stream.is_done()] == [False, False, True]
    # Torch would take what is left behind for a failure of its own next kernel.
    assert library.names().count("cudaGetLastError") == 2


def test_an_error_says_which_call_failed_why_and_what_to_do(
    library: FakeCudart, memory: CudaMemory
) -> None:
    library.failures["cudaMalloc"] = 2
    with pytest.raises(ExportUnavailable, match=r"GPU-b.*CUDA error 2.*lower kv_cache_mib"):
        memory.allocate(1 << 20)
    stream = memory.new_stream()
    library.failures["cudaEventQuery"] = 700
    with pytest.raises(DeviceFailed, match=r"cudaEventQuery failed .*700.*Xid"):
        stream.is_done()
    library.failures["cudaSetDevice"] = 101
    with pytest.raises(DeviceFailed, match="101"):
        memory.new_stream()


def test_a_copy_that_is_refused_is_followed_by_the_event_for_those_before_it(
    library: FakeCudart, memory: CudaMemory
) -> None:
    stream = memory.new_stream()
    pools = memory.allocate(8), memory.allocate(8)
    library.calls.clear()
    library.failures["cudaMemcpyAsync"] = 1
    with pytest.raises(DeviceFailed):
        stream.begin(*pools, [ByteRun(0, 0, 8)])
    assert library.names()[-1] == "cudaEventRecord"


def test_a_stream_of_a_failed_device_is_closed_without_an_error(
    library: FakeCudart, memory: CudaMemory
) -> None:
    stream = memory.new_stream()
    library.failures.update(cudaEventDestroy=700, cudaStreamDestroy=700)
    with structlog.testing.capture_logs() as lines:
        stream.close()
    assert [line["event"] for line in lines] == ["kv_stream_not_freed"]
    # Each was tried: what can be had back is.
    assert library.names().count("cudaEventDestroy") == 2
    assert library.names()[-2:] == ["cudaStreamDestroy", "cudaGetLastError"]


def test_copies_whose_end_could_not_be_marked_are_not_taken_for_ended(
    library: FakeCudart, memory: CudaMemory
) -> None:
    stream = memory.new_stream()
    pools = memory.allocate(8), memory.allocate(8)
    stream.begin(*pools, [ByteRun(0, 0, 8)])
    assert stream.is_done()
    library.failures_after["cudaEventRecord"] = (1, 2)
    with pytest.raises(DeviceFailed):
        stream.begin(*pools, [ByteRun(0, 0, 8)])
    # The event is that of the copy before.
    with pytest.raises(DeviceFailed, match="nothing tells"):
        stream.is_done()
    stream.begin(*pools, [ByteRun(0, 0, 8)])
    assert stream.is_done()


SCATTERED = [ByteRun(0, 40, 8), ByteRun(16, 0, 24), ByteRun(8, 24, 8)]


@pytest.mark.parametrize(
    ("version", "call", "num_calls"),
    [
        (12_040, "cudaMemcpyAsync", 3),
        (12_080, "cudaMemcpyBatchAsync", 1),
        (12_090, "cudaMemcpyBatchAsync", 1),
        (13_000, "cudaMemcpyBatchAsync", 1),
        (13_020, "cudaMemcpyBatchAsync", 1),
        # Its arguments were changed once, between versions of other first numbers.
        (14_000, "cudaMemcpyAsync", 3),
    ],
)
def test_scattered_bytes_are_one_call_where_the_runtime_has_it(
    version: int, call: str, num_calls: int
) -> None:
    library = FakeCudart(version)
    memory = CudaMemory(CudaRuntime(library, 1), 1, IDS)
    source, target = memory.allocate(64), memory.allocate(64)
    source.write(0, bytes(range(64)))
    library.calls.clear()
    memory.new_stream().begin(target, source, SCATTERED)
    assert [name for name in library.names() if "Memcpy" in name] == [call] * num_calls
    assert target.read(0, 64) == _copied_one_by_one(bytes(range(64)))


def _copied_one_by_one(source: bytes) -> bytes:
    target = bytearray(64)
    for src, dst, num_bytes in SCATTERED:
        target[dst : dst + num_bytes] = source[src : src + num_bytes]
    return bytes(target)


@pytest.mark.parametrize("code", [1, 36, 801])
def test_a_batch_that_is_refused_is_copied_one_by_one_from_then_on(
    library: FakeCudart, memory: CudaMemory, code: int
) -> None:
    source, target = memory.allocate(64), memory.allocate(64)
    source.write(0, bytes(range(64)))
    stream = memory.new_stream()
    library.calls.clear()
    library.failures["cudaMemcpyBatchAsync"] = code
    stream.begin(target, source, SCATTERED)
    assert library.names().count("cudaMemcpyBatchAsync") == 1
    assert library.names().count("cudaMemcpyAsync") == 3
    # Torch would take what is left behind for a failure of its own next kernel.
    assert library.names().count("cudaGetLastError") == 1
    assert target.read(0, 64) == _copied_one_by_one(bytes(range(64)))
    stream.begin(target, source, SCATTERED)
    assert library.names().count("cudaMemcpyBatchAsync") == 1


def test_a_batch_that_fails_is_a_failed_copy(library: FakeCudart, memory: CudaMemory) -> None:
    stream = memory.new_stream()
    pools = memory.allocate(64), memory.allocate(64)
    library.failures["cudaMemcpyBatchAsync"] = 700
    with pytest.raises(DeviceFailed, match=r"cudaMemcpyBatchAsync failed .*700"):
        stream.begin(*pools, SCATTERED)
    assert library.names()[-1] == "cudaEventRecord"


@pytest.mark.gpu
@pytest.mark.parametrize("is_on_host", ["neither", "source", "target"])
def test_on_a_gpu_a_batch_copies_what_single_copies_do(is_on_host: str) -> None:
    try:
        memory = CudaMemory.of_device(0)
    except ExportUnavailable as error:
        pytest.skip(str(error))
    size, num_runs = 1 << 20, 500
    generator = np.random.default_rng(4)
    content = generator.integers(0, 256, size, np.uint8).tobytes()
    starts = generator.permutation(size // 1024)[: 2 * num_runs].tolist()
    sources, targets = starts[:num_runs], starts[num_runs:]
    runs = [ByteRun(1024 * s, 1024 * t, 1000) for s, t in zip(sources, targets, strict=True)]
    arrived: list[bytes] = []
    for takes_batches in (True, False):
        # Both pinned, or both on the device: what KV transfer copies between.
        source, target = memory.allocate(size), memory.allocate(size)
        pinned_source, pinned_target = memory.pin(size), memory.pin(size)
        source.write(0, content)
        pinned_source.view[:] = content
        pinned_target.view[:] = bytes(size)
        stream = memory.new_stream()
        assert isinstance(stream, CudaStream)
        had_batches = stream.runtime.takes_batches
        stream.runtime.takes_batches = takes_batches and had_batches
        stream.begin(
            pinned_target.view if is_on_host == "target" else target,
            pinned_source.view if is_on_host == "source" else source,
            runs,
        )
        wait_for_copies(stream, "test", lambda: True, MonotonicClock())
        # It was not refused.
        assert stream.runtime.takes_batches == (takes_batches and had_batches)
        on_host = is_on_host == "target"
        arrived.append(bytes(pinned_target.view) if on_host else target.read(0, size))
    wanted = bytearray(size)
    for src, dst, num_bytes in runs:
        wanted[dst : dst + num_bytes] = content[src : src + num_bytes]
    assert arrived == [bytes(wanted), bytes(wanted)]


class _HurryingClock(ManualClock):
    """A second passes whenever someone looks."""

    def now(self) -> float:
        return self.advance(1.0)


def test_a_copy_that_is_waited_for_is_given_up_and_its_memory_kept(library: FakeCudart) -> None:
    memory = CudaMemory(CudaRuntime(library, 1), 1, IDS, clock=_HurryingClock())
    pool = memory.allocate(8)
    library.num_not_ready = 1 << 60
    with pytest.raises(DeviceFailed, match=r"10 s after.*restart this worker"):
        pool.write(0, b"x")
    del pool
    gc.collect()
    assert library.memory
    assert "cudaStreamDestroy" not in library.names()


def test_a_handle_is_mapped_by_others_and_not_by_its_owner(
    library: FakeCudart, memory: CudaMemory
) -> None:
    pool = memory.allocate(64)
    handle = pool.handle()
    assert len(handle) == HANDLE_BYTES
    own = memory.open(handle, 64)
    assert (own.address, library.num_mapped) == (pool.address, 0)
    other = another_process(library).open(handle, 64)
    assert library.num_mapped == 1
    other.write(0, b"x")
    assert pool.read(0, 1) == b"x"
    other.close()
    other.close()
    assert library.num_mapped == 0


def test_a_handle_that_cannot_be_mapped_is_a_clear_error(
    library: FakeCudart, memory: CudaMemory
) -> None:
    library.failures["cudaIpcOpenMemHandle"] = 201
    with pytest.raises(ExportUnavailable, match="PID and IPC namespace"):
        memory.open(bytes(HANDLE_BYTES), 64)


def test_memory_is_freed_with_its_last_reference(library: FakeCudart, memory: CudaMemory) -> None:
    pool = memory.allocate(64)
    alias = memory.open(pool.handle(), 64)
    del pool
    gc.collect()
    assert len(library.memory) == 1
    del alias
    gc.collect()
    assert not library.memory


def test_pinned_memory_is_plain_memory_until_it_is_closed(
    library: FakeCudart, memory: CudaMemory
) -> None:
    pinned = memory.pin(32)
    pinned.view[:4] = b"abcd"
    pool = memory.allocate(32)
    stream = memory.new_stream()
    stream.begin(pool, pinned.view, [ByteRun(0, 0, 32)])
    assert pool.read(0, 4) == b"abcd"
    pinned.close()
    assert "cudaFreeHost" in library.names()


def test_which_devices_are_reached(memory: CudaMemory) -> None:
    assert memory.reach_problem("GPU-b") is None
    assert memory.reach_problem("GPU-a") is None
    assert "topo" in str(memory.reach_problem("GPU-c"))
    assert "CUDA_VISIBLE_DEVICES" in str(memory.reach_problem("GPU-z"))


def test_a_build_of_torch_without_cuda_is_a_clear_error() -> None:
    with pytest.raises(ExportUnavailable, match="--device cpu"):
        load_library(None)
    with pytest.raises(ExportUnavailable, match=r"libcudart\.so\.99"):
        load_library("99.1")


@given(st.binary(min_size=8, max_size=4096), st.integers(1, 12))
def test_torch_and_numpy_give_one_checksum(data: bytes, num_blocks: int) -> None:
    size = len(data) // 8 * 8
    block = np.frombuffer(data[:size], np.uint8)
    blocks = np.concatenate([np.roll(block, i) for i in range(num_blocks)])
    found = block_checksums(torch.from_numpy(blocks), size, range(num_blocks))
    assert found == [word_checksum(blocks[i * size :][:size]) for i in range(num_blocks)]


def test_a_checksum_finds_one_bit_and_words_that_change_places() -> None:
    words = np.arange(64, dtype=np.uint64)
    good = word_checksum(words.view(np.uint8))
    for at in range(64 * 64):
        damaged = words.copy()
        damaged[at // 64] ^= np.uint64(1 << at % 64)
        assert word_checksum(damaged.view(np.uint8)) != good
    swapped = words.copy()
    swapped[[3, 9]] = swapped[[9, 3]]
    assert word_checksum(swapped.view(np.uint8)) != good
    assert word_checksum(np.zeros(64, np.uint8)) != word_checksum(np.zeros(128, np.uint8))
