"""The few functions of the CUDA runtime that KV transfer calls, by ctypes.

The library is the one that torch has loaded: both then share one context of each device. Calls
let go of the interpreter lock. Every call names the device first: each thread has a current one.
"""

import ctypes
from ctypes import c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.device import HANDLE_BYTES
from kvtransfer.errors import DeviceFailed, ExportUnavailable
from runtime.logging import get_logger

log = get_logger()

Runs: TypeAlias = npt.NDArray[np.uint64]

_MAPPINGS: Final = Path("/proc/self/maps")
# cudaError_t
_SUCCESS: Final = 0
_INVALID_VALUE: Final = 1
_OUT_OF_MEMORY: Final = 2
_NEEDS_NEWER_DRIVER: Final = 36
_PEER_ACCESS_UNSUPPORTED: Final = 217
_NOT_READY: Final = 600
_NOT_SUPPORTED: Final = 801
# Of the runtime's flags and kinds.
_LAZY_PEER_ACCESS: Final = 1
_MEMCPY_DEFAULT: Final = 4
_STREAM_NON_BLOCKING: Final = 1
_EVENT_WITHOUT_TIMING: Final = 2
_SOURCE_IN_STREAM_ORDER: Final = 1
_OVERLAP_WITH_COMPUTE: Final = 1
# Codes by which a runtime, a driver or memory that batches do not take is told from a failure.
_NO_BATCHES: Final = frozenset({_INVALID_VALUE, _NEEDS_NEWER_DRIVER, _NOT_SUPPORTED})
# Runtimes of this version or later have batches; the next one says otherwise which copy failed;
# what one later than the last would want is not known.
_FIRST_WITH_BATCHES: Final = 12_080
_FIRST_WITHOUT_FAIL_INDEX: Final = 13_000
_LAST_WITH_KNOWN_BATCHES: Final = 13_999
# One copy is one call, either way.
_LEAST_BATCH: Final = 2

_FIX_BY_CODE: Final = {
    _OUT_OF_MEMORY: "lower kv_cache_mib, or end what else uses this GPU (nvidia-smi)",
    _PEER_ACCESS_UNSUPPORTED: "use a network transport between these GPUs",
    _NOT_SUPPORTED: "this GPU or driver has no CUDA IPC; take cuda_ipc out of transports",
}
_FIX: Final = "look for Xid lines in the kernel log, and restart this worker"


class IpcHandle(ctypes.Structure):
    """cudaIpcMemHandle_t; passed by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class MemoryLocation(ctypes.Structure):
    """cudaMemLocation."""

    _fields_ = (("kind", c_int), ("id", c_int))


class CopyAttributes(ctypes.Structure):
    """cudaMemcpyAttributes; the places are hints, for memory that moves by itself."""

    _fields_ = (
        ("source_order", c_int),
        ("source_hint", MemoryLocation),
        ("target_hint", MemoryLocation),
        ("flags", c_uint),
    )


# Of their arguments; all return cudaError_t.
_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "cudaSetDevice": (c_int,),
    "cudaGetLastError": (),
    "cudaMalloc": (c_void_p, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMemset": (c_void_p, c_int, c_size_t),
    "cudaDeviceSynchronize": (),
    "cudaHostAlloc": (c_void_p, c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaIpcGetMemHandle": (c_void_p, c_void_p),
    "cudaIpcOpenMemHandle": (c_void_p, IpcHandle, c_uint),
    "cudaIpcCloseMemHandle": (c_void_p,),
    "cudaDeviceCanAccessPeer": (c_void_p, c_int, c_int),
    "cudaStreamCreateWithFlags": (c_void_p, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cudaEventCreateWithFlags": (c_void_p, c_uint),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventQuery": (c_void_p,),
    "cudaEventDestroy": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaRuntimeGetVersion": (c_void_p,),
}
# Targets, sources, sizes, how many; attributes, from which copy on each holds, how many.
_BATCH_ARGUMENTS: Final = (
    *(c_void_p, c_void_p, c_void_p, c_size_t),
    *(c_void_p, c_void_p, c_size_t),
)


class CudaRuntime:
    """One device, through one library. Calls come from any thread."""

    def __init__(self, library: Any, device_index: int) -> None:
        self._library = library
        self._device_index = device_index
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        library.cudaGetErrorString.argtypes = (c_int,)
        library.cudaGetErrorString.restype = ctypes.c_char_p
        # Where a batch has been refused once, nobody asks again.
        self.takes_batches = self._has_batches()

    def allocate(self, num_bytes: int) -> int:
        """The address of cleared memory. Raises: DeviceFailed."""
        address = c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), num_bytes)
        self._call("cudaMemset", address, 0, num_bytes)
        # Before anybody else writes there.
        self._call("cudaDeviceSynchronize")
        return _value(address)

    def free(self, address: int) -> None:
        """Raises: DeviceFailed."""
        self._call("cudaFree", address)

    def allocate_pinned(self, num_bytes: int) -> int:
        """The address of host memory that devices reach. Raises: DeviceFailed."""
        address = c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), num_bytes, 0)
        return _value(address)

    def free_pinned(self, address: int) -> None:
        """Raises: DeviceFailed."""
        self._call("cudaFreeHost", address)

    def handle_of(self, address: int) -> bytes:
        """By which another process maps an allocation. Raises: DeviceFailed."""
        handle = IpcHandle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), address)
        return ctypes.string_at(ctypes.byref(handle), HANDLE_BYTES)

    def open_handle(self, handle: bytes) -> int:
        """Map an allocation of another process. Raises: DeviceFailed."""
        address = c_void_p()
        by_value = IpcHandle.from_buffer_copy(handle)
        self._call("cudaIpcOpenMemHandle", ctypes.byref(address), by_value, _LAZY_PEER_ACCESS)
        return _value(address)

    def close_handle(self, address: int) -> None:
        """Raises: DeviceFailed."""
        self._call("cudaIpcCloseMemHandle", address)

    def can_access_peer(self, peer_index: int) -> bool:
        """Whether this device reads and writes the memory of that one. Raises: DeviceFailed."""
        answer = c_int()
        self._call("cudaDeviceCanAccessPeer", ctypes.byref(answer), self._device_index, peer_index)
        return bool(answer.value)

    def new_stream(self) -> int:
        """One that does not wait for the default stream, nor hold it up. Raises: DeviceFailed."""
        stream = c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        return _value(stream)

    def destroy_stream(self, stream: int) -> None:
        """Raises: DeviceFailed."""
        self._call("cudaStreamDestroy", stream)

    def new_event(self) -> int:
        """Raises: DeviceFailed."""
        event = c_void_p()
        self._call("cudaEventCreateWithFlags", ctypes.byref(event), _EVENT_WITHOUT_TIMING)
        return _value(event)

    def destroy_event(self, event: int) -> None:
        """Raises: DeviceFailed."""
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """The event happens once all that the stream was given has ended. Raises: DeviceFailed."""
        self._call("cudaEventRecord", event, stream)

    def has_happened(self, event: int) -> bool:
        """Never waits. Raises: DeviceFailed for what went wrong before the event, too."""
        return self._code_of("cudaEventQuery", event) == _SUCCESS

    def wait_in(self, stream: int, event: int) -> None:
        """What the stream is given from now on begins after the event. Raises: DeviceFailed."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def copy(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        """Give a stream a copy between any two addresses. Raises: DeviceFailed."""
        self._call("cudaMemcpyAsync", target, source, num_bytes, _MEMCPY_DEFAULT, stream)

    def copy_all(self, runs: Runs, stream: int) -> None:
        """Give a stream many copies, in no order among themselves. Raises: DeviceFailed.

        `runs`: [num_copies, 3] of target and source addresses and numbers of bytes.
        """
        if self.takes_batches and len(runs) >= _LEAST_BATCH:
            self.takes_batches = self._copy_batch(runs, stream)
            if self.takes_batches:
                return
        for target, source, num_bytes in runs.tolist():
            self.copy(target, source, num_bytes, stream)

    def _copy_batch(self, runs: Runs, stream: int) -> bool:
        """In one call. False where that is refused; some may be under way then, and may be again.

        Raises: DeviceFailed.
        """
        # [3, num_copies]: each row is an array of its own to the library.
        columns = np.ascontiguousarray(runs.T)
        attributes = CopyAttributes(
            source_order=_SOURCE_IN_STREAM_ORDER, flags=_OVERLAP_WITH_COMPUTE
        )
        first, failed = c_size_t(0), c_size_t(0)
        rows = (columns[at].ctypes.data for at in range(3))
        # The library wants an address that is not null wherever it has such an argument.
        where = (ctypes.byref(failed),) if self._tells_which_failed else ()
        code = self._code_of(
            "cudaMemcpyBatchAsync",
            *rows,
            len(runs),
            ctypes.byref(attributes),
            ctypes.byref(first),
            1,
            *where,
            stream,
            answers=_NO_BATCHES,
        )
        if code != _SUCCESS:
            log.info("kv_batched_copies_refused", code=code, num_copies=len(runs))
        return code == _SUCCESS

    def _has_batches(self) -> bool:
        version = c_int()
        self._library.cudaRuntimeGetVersion(ctypes.byref(version))
        self._tells_which_failed = version.value < _FIRST_WITHOUT_FAIL_INDEX
        if not _FIRST_WITH_BATCHES <= version.value <= _LAST_WITH_KNOWN_BATCHES:
            return False
        function = getattr(self._library, "cudaMemcpyBatchAsync", None)
        if function is None:
            return False
        where = (c_void_p,) if self._tells_which_failed else ()
        function.argtypes, function.restype = (*_BATCH_ARGUMENTS, *where, c_void_p), c_int
        return True

    def _call(self, name: str, *arguments: object) -> None:
        self._code_of(name, *arguments)

    def _code_of(self, name: str, *arguments: object, answers: frozenset[int] = frozenset()) -> int:
        """Success, that something is not ready yet, or one of `answers`.

        Raises: DeviceFailed for all else.
        """
        library = self._library
        code = library.cudaSetDevice(self._device_index)
        if code == _SUCCESS:
            code = getattr(library, name)(*arguments)
        if code == _SUCCESS:
            return int(code)
        # The runtime remembers it for this thread, and torch would take it for its own.
        library.cudaGetLastError()
        if code == _NOT_READY or code in answers:
            return int(code)
        text = library.cudaGetErrorString(code)
        problem = f"CUDA error {code}: {text.decode() if text else 'unknown'}"
        raise DeviceFailed(name, problem, _FIX_BY_CODE.get(code, _FIX))


def load_library(cuda_version: str | None) -> Any:
    """The runtime that torch has loaded, by its version ("13.0"). Raises: ExportUnavailable."""
    if cuda_version is None:
        raise ExportUnavailable(
            "this build of torch has no CUDA", "install one that has, or use --device cpu"
        )
    name = f"libcudart.so.{cuda_version.partition('.')[0]}"
    for path in (name, _loaded_path()):
        try:
            if path:
                return ctypes.CDLL(path)
        except OSError:
            continue
    raise ExportUnavailable(f"{name} is not found", "reinstall torch with its CUDA packages")


def _loaded_path() -> str | None:
    """Of a runtime under another name, as wheels with patched libraries have it."""
    for line in _MAPPINGS.read_text(encoding="utf-8").splitlines():
        path = line.partition("/")
        if "libcudart" in path[2]:
            return path[1] + path[2]
    return None


def _value(pointer: c_void_p) -> int:
    if pointer.value is None:
        raise DeviceFailed("the CUDA runtime", "it gave no address", _FIX)
    return pointer.value
