"""For tests: a device whose memory is the host's, which other processes map as they would a GPU's.

Copies are done later, by a stream that moves on when it is looked at, or when the test says so.
"""

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import plain_copy
from kvtransfer.device import (
    HANDLE_BYTES,
    ByteRun,
    CopyStream,
    DeviceMemory,
    DevicePool,
    KvSource,
    PinnedBytes,
)
from kvtransfer.errors import DeviceFailed, ExportUnavailable
from kvtransfer.protocol import CopyBytes
from kvtransfer.testing import PATIENCE_S
from kvtransfer.word_checksum import word_checksum

_Bytes = npt.NDArray[np.uint8]
FAKE_DEVICE: Final = "GPU-fake-0"


class FakePool:
    """See `DevicePool`: memory without a name, found by others through the process that has it."""

    def __init__(self, file: int, num_bytes: int, *, is_own: bool) -> None:
        self._file = file
        self._memory = mmap.mmap(file, num_bytes)
        self._is_own = is_own
        self.is_open = True
        self._close_file = weakref.finalize(self, os.close, file)
        self.bytes: _Bytes = np.frombuffer(self._memory, np.uint8)

    @property
    def num_bytes(self) -> int:
        return len(self.bytes)

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data

    def handle(self) -> bytes:
        if not self._is_own:
            raise DeviceFailed("handle", "a mapped pool", "ask its owner")
        return f"{os.getpid()}:{self._file}".encode().ljust(HANDLE_BYTES, b"\0")

    def read(self, start: int, num_bytes: int) -> bytes:
        return self.bytes[start : start + num_bytes].tobytes()

    def write(self, start: int, data: bytes) -> None:
        self.bytes[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def close(self) -> None:
        self.is_open = False
        self._close_file()


class FakeStream:
    """See `CopyStream`. Each look does one copy; of a manual one, only `advance` does any."""

    def __init__(
        self, copy_bytes: CopyBytes, *, is_manual: bool, strikes_leaving: bool = False
    ) -> None:
        self._copy_bytes = copy_bytes
        self._strikes_leaving = strikes_leaving
        self._is_manual = is_manual
        self._changed = threading.Condition()
        self._queue: deque[tuple[CopyBytes, _Bytes, _Bytes]] = deque()
        # Each raises DeviceFailed once, when the stream is asked for the next time.
        self.failures: list[str] = []
        self.num_begun = 0
        self.is_closed = False

    def begin(self, target: KvSource, source: KvSource, runs: Sequence[ByteRun]) -> None:
        self._fail_if_told("begin")
        to, of = _bytes_of(target), _bytes_of(source)
        # What is injected strikes where blocks arrive, as with other transports, or where they
        # leave.
        is_struck = isinstance(target, memoryview) is self._strikes_leaving
        copy_bytes = self._copy_bytes if is_struck else plain_copy
        with self._changed:
            for src, dst, num_bytes in runs:
                ends = to[dst : dst + num_bytes], of[src : src + num_bytes]
                self._queue.append((copy_bytes, *ends))
                self.num_begun += 1
            self._changed.notify_all()

    def is_done(self) -> bool:
        self._fail_if_told("is_done")
        if not self._is_manual:
            self._copy_one()
        with self._changed:
            return not self._queue

    @property
    def num_pending(self) -> int:
        """Copies that were begun and not done; asking does none."""
        with self._changed:
            return len(self._queue)

    def advance(self, num_copies: int = 1) -> None:
        """Do copies, of those that were begun or will be."""
        for _ in range(num_copies):
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._queue), PATIENCE_S):
                    raise TimeoutError("no copy was begun")
            self._copy_one()

    def checksums(
        self, pool: DevicePool, block_bytes: int, block_ids: Sequence[int]
    ) -> npt.NDArray[np.uint64]:
        self._fail_if_told("checksums")
        blocks = _bytes_of(pool).reshape(-1, block_bytes)
        return np.array([word_checksum(blocks[at]) for at in block_ids], np.uint64)

    def close(self) -> None:
        self.is_closed = True
        self._fail_if_told("close")

    def _copy_one(self) -> None:
        with self._changed:
            if not self._queue:
                return
            copy_bytes, target, source = self._queue[0]
        copy_bytes(target, source)
        with self._changed:
            self._queue.popleft()

    def _fail_if_told(self, call: str) -> None:
        if call in self.failures:
            self.failures.remove(call)
            raise DeviceFailed(call, "the test says so", "look at the test")


class FakePinnedBytes:
    """See `PinnedBytes`."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = bytearray(num_bytes)
        self.is_closed = False

    @property
    def view(self) -> memoryview:
        return memoryview(self._memory)

    def close(self) -> None:
        """Goes with the last view of it."""
        self.is_closed = True


class FakeDevice:
    """See `DeviceMemory`. Others of this kind are peers where `peers` names them."""

    def __init__(
        self,
        device_id: str = FAKE_DEVICE,
        copy_bytes: CopyBytes = plain_copy,
        *,
        is_manual: bool = False,
        strikes_leaving: bool = False,
        peers: Sequence[str] = (),
    ) -> None:
        """`strikes_leaving`: `copy_bytes` is for copies to the host instead of those from it."""
        self.device_id = device_id
        self._copy_bytes = copy_bytes
        self._is_manual = is_manual
        self._strikes_leaving = strikes_leaving
        self._peers = peers
        # What was made here, in order.
        self.streams: list[FakeStream] = []
        self.opened: list[FakePool] = []
        self.pinned: list[FakePinnedBytes] = []

    def allocate(self, num_bytes: int) -> DevicePool:
        file = os.memfd_create("fake-device", os.MFD_CLOEXEC)
        os.ftruncate(file, num_bytes)
        return FakePool(file, num_bytes, is_own=True)

    def open(self, handle: bytes, num_bytes: int) -> DevicePool:
        pid, _, number = handle.rstrip(b"\0").decode().partition(":")
        try:
            file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ExportUnavailable(
                f"the pool cannot be mapped: {error.strerror}", "look at its owner"
            ) from error
        self.opened.append(FakePool(file, num_bytes, is_own=False))
        return self.opened[-1]

    def reach_problem(self, device_id: str) -> str | None:
        if device_id == self.device_id or device_id in self._peers:
            return None
        return f"no peer access between {self.device_id} and {device_id}"

    def new_stream(self) -> CopyStream:
        stream = FakeStream(
            self._copy_bytes, is_manual=self._is_manual, strikes_leaving=self._strikes_leaving
        )
        self.streams.append(stream)
        return self.streams[-1]

    def pin(self, num_bytes: int) -> PinnedBytes:
        self.pinned.append(FakePinnedBytes(num_bytes))
        return self.pinned[-1]


class FaultyDevice:
    """A device whose copies go through the host, where a test has its hand in them."""

    def __init__(self, inner: DeviceMemory, copy_bytes: CopyBytes) -> None:
        self._inner = inner
        self._copy_bytes = copy_bytes
        self.device_id = inner.device_id
        self.allocate = inner.allocate
        self.open = inner.open
        self.reach_problem = inner.reach_problem
        self.pin = inner.pin

    def new_stream(self) -> CopyStream:
        return _FaultyStream(self._inner.new_stream(), self._copy_bytes)


class _FaultyStream:
    def __init__(self, inner: CopyStream, copy_bytes: CopyBytes) -> None:
        self._inner = inner
        self._copy_bytes = copy_bytes
        self.checksums = inner.checksums
        self.is_done = inner.is_done
        self.close = inner.close

    def begin(self, target: KvSource, source: KvSource, runs: Sequence[ByteRun]) -> None:
        if isinstance(target, memoryview):
            self._inner.begin(target, source, runs)
            return
        for src, dst, num_bytes in runs:
            bytes_of, before = bytearray(num_bytes), bytearray(num_bytes)
            self._copy_now(memoryview(bytes_of), source, ByteRun(src, 0, num_bytes))
            self._copy_now(memoryview(before), target, ByteRun(dst, 0, num_bytes))
            self._copy_bytes(np.frombuffer(before, np.uint8), np.frombuffer(bytes_of, np.uint8))
            self._copy_now(target, memoryview(before), ByteRun(0, dst, num_bytes))

    def _copy_now(self, target: KvSource, source: KvSource, run: ByteRun) -> None:
        self._inner.begin(target, source, [run])
        while not self._inner.is_done():
            pass


def _bytes_of(memory: KvSource) -> _Bytes:
    if isinstance(memory, memoryview):
        return np.frombuffer(memory, np.uint8)
    assert isinstance(memory, FakePool)
    if not memory.is_open:
        raise DeviceFailed("copy", "the pool is closed", "copy before it is")
    return memory.bytes
