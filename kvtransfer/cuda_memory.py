"""`DeviceMemory` over the CUDA runtime. Not imported where there is no torch.

Pools come from cudaMalloc, not from torch's allocator: that one exports the whole segment which
a tensor lies in, and may give the segment back. Torch sees a pool as a tensor without a copy.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtransfer.cuda_checksum import block_checksums
from kvtransfer.cuda_runtime import CudaRuntime, load_library
from kvtransfer.device import ByteRun, CopyStream, DevicePool, KvSource, PinnedBytes
from kvtransfer.device_writing import kept_if_stuck, wait_for_copies
from kvtransfer.errors import CopyStuck, DeviceFailed, ExportUnavailable
from runtime.clock import Clock, MonotonicClock
from runtime.logging import get_logger

log = get_logger()

# The stream on which torch computes unless it is told otherwise.
_DEFAULT_STREAM: Final = 0
_COPY_NOW: Final = "a copy that was waited for"


class CudaPool:
    """See `DevicePool`. Freed or unmapped with its last reference, a tensor's included."""

    def __init__(
        self, memory: "CudaMemory", address: int, num_bytes: int, release: Callable[[], None]
    ) -> None:
        self._memory = memory
        self.address = address
        self.num_bytes = num_bytes
        self._release = weakref.finalize(self, release)
        # Where the process ends, the driver takes it all; the context may be gone by then.
        self._release.atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """By which torch takes the memory as it is; one byte is an element."""
        return {
            "shape": (self.num_bytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    def tensor(self) -> Tensor:
        """The pool as uint8 [num_bytes]; shares memory and keeps it."""
        return torch.as_tensor(self, device=torch.device("cuda", self._memory.device_index))

    def handle(self) -> bytes:
        return self._memory.handle_of(self)

    def read(self, start: int, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        self._memory.copy_now(memoryview(data), self, ByteRun(start, 0, num_bytes))
        return bytes(data)

    def write(self, start: int, data: bytes) -> None:
        source = memoryview(bytearray(data))
        self._memory.copy_now(self, source, ByteRun(0, start, len(data)))

    def close(self) -> None:
        self._release()


class CudaMemory:
    """See `DeviceMemory`."""

    def __init__(
        self,
        runtime: CudaRuntime,
        device_index: int,
        device_ids: Sequence[str],
        engine_stream: int = _DEFAULT_STREAM,
        clock: Clock | None = None,
    ) -> None:
        """`device_ids` of all devices that this process sees, by index."""
        self._runtime = runtime
        self.device_index = device_index
        self.device_id = device_ids[device_index]
        self._device_ids = device_ids
        self._engine_stream = engine_stream
        self._clock = clock or MonotonicClock()
        # CUDA maps no handle in the process that exported it.
        self._lock = threading.Lock()
        self._own_by_handle: weakref.WeakValueDictionary[bytes, CudaPool] = (
            weakref.WeakValueDictionary()
        )

    @classmethod
    def of_device(cls, device_index: int) -> "CudaMemory":
        """Raises: ExportUnavailable where there is no such device."""
        if not torch.cuda.is_available():
            raise ExportUnavailable(
                "no CUDA device is usable", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        count = torch.cuda.device_count()
        ids = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(count)]
        runtime = CudaRuntime(load_library(torch.version.cuda), device_index)
        return cls(runtime, device_index, ids)

    def allocate(self, num_bytes: int) -> CudaPool:
        """See `DeviceMemory.allocate`."""
        # What torch has freed it keeps, and would not give to us.
        torch.cuda.empty_cache()
        try:
            address = self._runtime.allocate(num_bytes)
        except DeviceFailed as error:
            raise ExportUnavailable(
                f"{num_bytes >> 20} MiB of {self.device_id} cannot be allocated: {error.problem}",
                error.fix,
            ) from error
        return CudaPool(self, address, num_bytes, _quietly(self._runtime.free, address))

    def open(self, handle: bytes, num_bytes: int) -> DevicePool:
        """See `DeviceMemory.open`."""
        with self._lock:
            own = self._own_by_handle.get(handle)
        if own is not None:
            return CudaPool(self, own.address, num_bytes, _keep(own))
        try:
            address = self._runtime.open_handle(handle)
        except DeviceFailed as error:
            raise ExportUnavailable(
                f"a GPU pool cannot be mapped: {error.problem}",
                "both processes must be of one user and share the PID and IPC namespace; or use a "
                "network transport",
            ) from error
        return CudaPool(self, address, num_bytes, _quietly(self._runtime.close_handle, address))

    def reach_problem(self, device_id: str) -> str | None:
        """See `DeviceMemory.reach_problem`."""
        if device_id == self.device_id:
            return None
        if device_id not in self._device_ids:
            return f"{device_id} is not seen here; name it in CUDA_VISIBLE_DEVICES of both workers"
        if not self._runtime.can_access_peer(self._device_ids.index(device_id)):
            return (
                f"no peer access between {self.device_id} and {device_id}; see nvidia-smi topo -p2p"
            )
        return None

    def new_stream(self) -> CopyStream:
        """See `DeviceMemory.new_stream`."""
        return CudaStream(self._runtime, self.device_index, self._engine_stream)

    def pin(self, num_bytes: int) -> PinnedBytes:
        """See `DeviceMemory.pin`."""
        try:
            return CudaPinnedBytes(self._runtime, num_bytes)
        except DeviceFailed as error:
            raise ExportUnavailable(
                f"{num_bytes >> 20} MiB of host memory cannot be pinned: {error.problem}",
                "raise the memory limit of this container",
            ) from error

    def handle_of(self, pool: CudaPool) -> bytes:
        """See `DevicePool.handle`."""
        handle = self._runtime.handle_of(pool.address)
        with self._lock:
            self._own_by_handle[handle] = pool
        return handle

    def copy_now(self, target: KvSource, source: KvSource, run: ByteRun) -> None:
        """One copy, waited for; not much longer than END_TIMEOUT_S. Raises: DeviceFailed."""
        stream = self.new_stream()
        try:
            with kept_if_stuck(target, source, stream):
                try:
                    stream.begin(target, source, [run])
                finally:
                    wait_for_copies(stream, _COPY_NOW, lambda: True, self._clock)
        except CopyStuck as error:
            raise DeviceFailed(
                _COPY_NOW,
                f"nothing tells that it has ended, {error.waited_s:g} s after it began",
                "restart this worker, and look for Xid lines in the kernel log",
            ) from error
        except BaseException:
            stream.close()
            raise
        stream.close()


class CudaStream:
    """See `CopyStream`. Any of its copies may go between devices or to and from the host."""

    def __init__(self, runtime: CudaRuntime, device_index: int, engine_stream: int) -> None:
        self.runtime = runtime
        self._device_index = device_index
        self._engine_stream = engine_stream
        self._stream = runtime.new_stream()
        # What the engine was given before our copies; what we were given.
        self._before = runtime.new_event()
        self._end = runtime.new_event()
        # Whether `_end` stands behind every copy that the stream was given.
        self._is_end_known = True
        self._is_closed = False

    def begin(self, target: KvSource, source: KvSource, runs: Sequence[ByteRun]) -> None:
        runtime, stream = self.runtime, self._stream
        runtime.record(self._before, self._engine_stream)
        runtime.wait_in(stream, self._before)
        to, of = _address_of(target), _address_of(source)
        self._is_end_known = False
        try:
            if runs:
                src, dst, num_bytes = np.array(runs, np.uint64).T
                copies = np.stack([np.uint64(to) + dst, np.uint64(of) + src, num_bytes], axis=1)
                runtime.copy_all(copies, stream)
        finally:
            runtime.record(self._end, stream)
            self._is_end_known = True

    def is_done(self) -> bool:
        if not self._is_end_known:
            # The event is still that of copies before these, and would tell of their end.
            raise DeviceFailed(
                "cudaEventRecord", "nothing tells when these copies end", "restart this worker"
            )
        return self.runtime.has_happened(self._end)

    def checksums(
        self, pool: DevicePool, block_bytes: int, block_ids: Sequence[int]
    ) -> npt.NDArray[np.uint64]:
        # Torch waits here without a bound. On a receiver that is the engine's thread, and its
        # watchdog the bound; on a sender a lane's, whose GPU is the one that its engine waits for.
        assert isinstance(pool, CudaPool)
        self.runtime.record(self._before, self._engine_stream)
        self.runtime.wait_in(self._stream, self._before)
        device = torch.device("cuda", self._device_index)
        stream = torch.cuda.ExternalStream(self._stream, device)  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                found = block_checksums(pool.tensor(), block_bytes, block_ids)
        except RuntimeError as error:
            raise DeviceFailed("a checksum", str(error), "restart this worker") from error
        return np.array(found, np.uint64)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        # A device that has failed frees nothing. Whoever closes has others to let go of.
        problems: list[str] = []
        for event in (self._before, self._end):
            try:
                self.runtime.destroy_event(event)
            except DeviceFailed as error:
                problems.append(str(error))
        try:
            self.runtime.destroy_stream(self._stream)
        except DeviceFailed as error:
            problems.append(str(error))
        if problems:
            log.warning("kv_stream_not_freed", error=problems[0])


class CudaPinnedBytes:
    """See `PinnedBytes`."""

    def __init__(self, runtime: CudaRuntime, num_bytes: int) -> None:
        address = runtime.allocate_pinned(num_bytes)
        self._array = (ctypes.c_ubyte * num_bytes).from_address(address)
        self._release = weakref.finalize(self, _quietly(runtime.free_pinned, address))
        self._release.atexit = False

    @property
    def view(self) -> memoryview:
        return memoryview(self._array).cast("B")

    def close(self) -> None:
        self._release()


def _address_of(memory: KvSource) -> int:
    if isinstance(memory, memoryview):
        return int(np.frombuffer(memory, np.uint8).ctypes.data)
    return memory.address


def _quietly(release: Callable[[int], None], address: int) -> Callable[[], None]:
    """For finalizers: a device that has failed frees nothing, and nobody could do anything."""

    def release_now() -> None:
        try:
            release(address)
        except DeviceFailed:
            return

    return release_now


def _keep(pool: CudaPool) -> Callable[[], None]:
    """A release that only lets go of a pool of this process."""
    kept = [pool]
    return kept.clear
