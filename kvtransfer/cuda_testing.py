"""For tests: a CUDA runtime in Python, over memory of the host, that writes down its calls."""

import ctypes
from typing import Any, Final

import numpy as np

_DEVICES: Final = 2
NOT_READY: Final = 600
_STREAM_ORDER: Final = 1


class _Function:
    """Looks like a function of a loaded library."""

    def __init__(self, library: "FakeCudart", name: str) -> None:
        self._library = library
        self._name = name
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self._library.perform(self._name, *arguments)


class FakeCudart:
    """The functions that `CudaRuntime` calls. `failures` maps a call to the code of its next."""

    def __init__(self, version: int = 13_000) -> None:
        """`version`: as the runtime says it; 12 080 is CUDA 12.8."""
        self.version = version
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failures: dict[str, int] = {}
        # The same of a later one: how many go well before it, and its code.
        self.failures_after: dict[str, tuple[int, int]] = {}
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.num_mapped = 0
        # How often an event is not ready yet.
        self.num_not_ready = 0
        self._functions: dict[str, _Function] = {}
        self._next = 1

    def __getattr__(self, name: str) -> _Function:
        is_too_new = name == "cudaMemcpyBatchAsync" and self.version < 12_080
        if is_too_new or not name.startswith("cuda"):
            raise AttributeError(name)
        return self._functions.setdefault(name, _Function(self, name))

    def names(self) -> list[str]:
        """Of all calls, without those that only name the device."""
        return [name for name, _ in self.calls if name != "cudaSetDevice"]

    def perform(self, name: str, *arguments: Any) -> Any:
        """One call into the library."""
        if name == "cudaGetErrorString":
            return b"a failure of the test"
        if name == "cudaRuntimeGetVersion":
            arguments[0]._obj.value = self.version
            return 0
        self.calls.append((name, arguments))
        if name in self.failures:
            return self.failures.pop(name)
        if name in self.failures_after:
            num_good, code = self.failures_after.pop(name)
            if not num_good:
                return code
            self.failures_after[name] = num_good - 1, code
        return self._do(name, arguments)

    def _do(self, name: str, arguments: tuple[Any, ...]) -> int:
        match name:
            case "cudaMalloc" | "cudaHostAlloc":
                buffer = ctypes.create_string_buffer(arguments[1])
                address = ctypes.addressof(buffer)
                self.memory[address] = buffer
                _put(arguments[0], address)
            case "cudaFree" | "cudaFreeHost":
                del self.memory[arguments[0]]
            case "cudaMemset":
                ctypes.memset(arguments[0], arguments[1], arguments[2])
            case "cudaMemcpyAsync":
                ctypes.memmove(arguments[0], arguments[1], arguments[2])
            case "cudaMemcpyBatchAsync":
                self._copy_batch(arguments)
            case "cudaIpcGetMemHandle":
                handle = np.uint64(arguments[1]).tobytes()
                ctypes.memmove(arguments[0], handle, len(handle))
            case "cudaIpcOpenMemHandle":
                self.num_mapped += 1
                _put(arguments[0], int.from_bytes(bytes(arguments[1])[:8], "little"))
            case "cudaIpcCloseMemHandle":
                self.num_mapped -= 1
            case "cudaDeviceCanAccessPeer":
                arguments[0]._obj.value = int(arguments[2] < _DEVICES)
            case "cudaStreamCreateWithFlags" | "cudaEventCreateWithFlags":
                self._next += 1
                _put(arguments[0], self._next)
            case "cudaEventQuery" if self.num_not_ready:
                self.num_not_ready -= 1
                return NOT_READY
        return 0

    def _copy_batch(self, arguments: tuple[Any, ...]) -> None:
        """Its arguments are those of this version, or the test fails here."""
        has_fail_index = self.version < 13_000
        targets, sources, sizes, count, attributes, firsts, num_attributes = arguments[:7]
        assert len(arguments) == 8 + has_fail_index, "as many as this version has"
        assert arguments[-1], "the legacy default stream takes no batches"
        assert (num_attributes, firsts._obj.value) == (1, 0), "one for all, from the first on"
        assert attributes._obj.source_order == _STREAM_ORDER
        assert ctypes.sizeof(attributes._obj) == 24, "as in the headers of CUDA 12.8 and 13.0"
        if has_fail_index:
            assert isinstance(arguments[7]._obj, ctypes.c_size_t)
        columns = [
            (ctypes.c_size_t * count).from_address(each) for each in (targets, sources, sizes)
        ]
        # In no promised order.
        for target, source, num_bytes in reversed(list(zip(*columns, strict=True))):
            ctypes.memmove(target, source, num_bytes)


def _put(reference: Any, value: int) -> None:
    reference._obj.value = value
