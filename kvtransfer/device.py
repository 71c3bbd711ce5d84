"""Memory of a GPU as KV transfer sees it: pools, copies on a stream of their own, checksums.

Implemented over the CUDA runtime (`cuda_memory.py`), and for tests over memory that processes
share (`device_testing.py`). Nothing here imports CUDA or torch.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# What another process needs to map a pool; as long as a cudaIpcMemHandle_t.
HANDLE_BYTES: Final = 64


class DevicePool(Protocol):
    """One piece of device memory: this process's own, or mapped from another one."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def address(self) -> int: ...

    def handle(self) -> bytes:
        """HANDLE_BYTES by which another process maps it. Raises: DeviceFailed."""
        ...

    def read(self, start: int, num_bytes: int) -> bytes:
        """A copy in host memory; waits for it. For probes and tests. Raises: DeviceFailed."""
        ...

    def write(self, start: int, data: bytes) -> None:
        """Replace bytes; waits for it. For probes and tests. Raises: DeviceFailed."""
        ...

    def close(self) -> None:
        """Free it, or unmap it. Twice is fine."""
        ...


# Where blocks are copied from or to: host bytes, or memory of a device.
KvSource: TypeAlias = memoryview | DevicePool


class ByteRun(NamedTuple):
    """Bytes [src, src + num_bytes) of one memory go to [dst, dst + num_bytes) of another."""

    src: int
    dst: int
    num_bytes: int


class CopyStream(Protocol):
    """Copies and checksums in the order in which they were begun. Used by one thread."""

    def begin(self, target: KvSource, source: KvSource, runs: Sequence[ByteRun]) -> None:
        """Start copies and return; `is_done` says when they have ended.

        They begin after what the engine's own stream was given until now: a pass that writes a
        block is queued before anybody may ask for the block. Raises: DeviceFailed.
        """
        ...

    def is_done(self) -> bool:
        """Whether all that was begun has ended; never waits. Raises: DeviceFailed."""
        ...

    def checksums(
        self, pool: DevicePool, block_bytes: int, block_ids: Sequence[int]
    ) -> npt.NDArray[np.uint64]:
        """`word_checksum` of each block, computed on the device; waits for it.

        Raises: DeviceFailed.
        """
        ...

    def close(self) -> None: ...


class PinnedBytes(Protocol):
    """Host memory that a device reads and writes by itself."""

    @property
    def view(self) -> memoryview: ...

    def close(self) -> None: ...


class DeviceMemory(Protocol):
    """The device that a worker's pool lies on. Calls come from any thread."""

    @property
    def device_id(self) -> str:
        """Names the device in every process of the machine; without a slash."""
        ...

    def allocate(self, num_bytes: int) -> DevicePool:
        """Cleared memory, in one piece that can be mapped as a whole. Raises: ExportUnavailable."""
        ...

    def open(self, handle: bytes, num_bytes: int) -> DevicePool:
        """Map a pool of another process; one of this process is found as well.

        Raises: ExportUnavailable.
        """
        ...

    def reach_problem(self, device_id: str) -> str | None:
        """None where memory of that device can be written from here, else what is missing."""
        ...

    def new_stream(self) -> CopyStream:
        """Raises: DeviceFailed."""
        ...

    def pin(self, num_bytes: int) -> PinnedBytes:
        """Raises: ExportUnavailable."""
        ...


def num_bytes_of(memory: KvSource) -> int:
    """The size of either kind of memory."""
    return memory.nbytes if isinstance(memory, memoryview) else memory.num_bytes


def read_bytes(memory: KvSource, start: int, num_bytes: int) -> bytes:
    """A copy of a part of either kind of memory."""
    if isinstance(memory, memoryview):
        return bytes(memory[start : start + num_bytes])
    return memory.read(start, num_bytes)


def write_bytes(memory: KvSource, start: int, data: bytes) -> None:
    """Replace a part of either kind of memory."""
    if isinstance(memory, memoryview):
        memory[start : start + len(data)] = data
    else:
        memory.write(start, data)
