"""Room for the batches that are on their way, and how blocks get into it and out of it.

The network never touches a pool: a batch is gathered here by its sender and received here by its
receiver, which puts it into its place once the grant was looked at again.
"""

import ctypes
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from kvtransfer.cuda_checksum import block_checksums
from kvtransfer.device import DevicePool, KvSource
from kvtransfer.device_writing import END_TIMEOUT_S, kept_if_stuck
from kvtransfer.errors import CopyStuck, DeviceFailed
from kvtransfer.plan import CopyRun, merge_runs
from kvtransfer.protocol import CopyBytes
from runtime.clock import MonotonicClock

# One batch is copied while the next one is on the wire.
NUM_ROOMS: Final = 2
_PAUSE_S: Final = 50e-6

_Bytes: TypeAlias = npt.NDArray[np.uint8]


class SideStream(Protocol):
    """What a device does for the rooms, beside what it does for the engine."""

    def current(self) -> AbstractContextManager[object]:
        """What torch is asked to do within happens here."""
        ...

    def wait_for_engine(self) -> None:
        """What is asked from now on happens after what the engine has asked for."""
        ...

    def is_idle(self) -> bool:
        """Never waits. Raises: RuntimeError where the device has failed."""
        ...


class CudaSideStream:
    """See `SideStream`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def wait_for_engine(self) -> None:
        self._stream.wait_stream(torch.cuda.default_stream(self._device))

    def is_idle(self) -> bool:
        return bool(self._stream.query())


class Staging:
    """Rooms for whole batches, taken in turns. Used by one thread.

    On a GPU everything that concerns them happens within `stream()`.
    """

    def __init__(self, max_batch_bytes: int, device: str, stream: SideStream | None = None) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._device = torch.device(device)
        if stream is None and self._device.type == "cuda":
            stream = CudaSideStream(self._device)
        # None: nothing is ever under way when a call returns.
        self._stream = stream
        self._rooms: list[torch.Tensor | None] = [None] * NUM_ROOMS
        self._num_taken = 0

    def stream(self) -> AbstractContextManager[object]:
        """A stream of its own, so that nothing here waits for the engine's."""
        return nullcontext() if self._stream is None else self._stream.current()

    def next_room(self, num_bytes: int) -> torch.Tensor:
        """[num_bytes]; its bytes are overwritten NUM_ROOMS calls later."""
        assert num_bytes <= self._max_batch_bytes, "the owner cuts, or refuses, larger batches"
        at = self._num_taken % NUM_ROOMS
        self._num_taken += 1
        room = self._rooms[at]
        if room is None:
            # On a CPU only what batches fill takes memory.
            room = torch.empty(self._max_batch_bytes, dtype=torch.uint8, device=self._device)
            self._rooms[at] = room
        return room[:num_bytes]

    def gather(self, source: KvSource, runs: Sequence[CopyRun], block_bytes: int) -> torch.Tensor:
        """Blocks, in their order, in the next room; on a GPU, in the order of the stream."""
        room = self.next_room(sum(run.num_blocks for run in runs) * block_bytes)
        if not isinstance(source, memoryview):
            self._gather_on_device(source, runs, room.view(-1, block_bytes))
        elif self._stream is None:
            _gather_on_host(source, runs, block_bytes, room.numpy())
        else:
            staged = torch.empty(len(room), dtype=torch.uint8, pin_memory=True)
            _gather_on_host(source, runs, block_bytes, staged.numpy())
            room.copy_(staged)
        return room

    def scatter(
        self, room: torch.Tensor, pool: KvSource, ids: npt.NDArray[np.int64], copy_bytes: CopyBytes
    ) -> None:
        """Copy received blocks to their place; all is there when it returns. Raises: CopyStuck."""
        if isinstance(pool, memoryview):
            _scatter_on_host(room.cpu().numpy(), pool, ids, copy_bytes)
            return
        blocks = room.view(len(ids), -1)
        index = torch.from_numpy(ids).to(room.device)
        self._flat(pool).view(-1, blocks.shape[1]).index_copy_(0, index, blocks)
        with kept_if_stuck(self, pool):
            self.wait_until_idle("that arrived by a process group")

    def checksums(
        self, pool: DevicePool, block_bytes: int, block_ids: Sequence[int]
    ) -> npt.NDArray[np.uint64]:
        """`word_checksum` of blocks of a pool on the device."""
        with self.stream():
            self._wait_for_engine()
            return np.array(block_checksums(self._flat(pool), block_bytes, block_ids), np.uint64)

    def wait_until_idle(self, transfer_id: str) -> None:
        """Return once nothing that was begun here reads or writes a pool any more.

        Raises: CopyStuck.
        """
        if self._stream is None:
            return
        pause, clock = threading.Event(), MonotonicClock()
        until_s = clock.now() + END_TIMEOUT_S
        try:
            while not self._stream.is_idle():
                if clock.now() >= until_s:
                    raise CopyStuck(transfer_id, END_TIMEOUT_S)
                pause.wait(_PAUSE_S)
        except RuntimeError as error:
            # The device cannot tell any more.
            raise CopyStuck(transfer_id, 0.0) from error

    def is_done(self) -> bool:
        """Whether nothing that was begun here is under way; never waits. Raises: DeviceFailed."""
        if self._stream is None:
            return True
        try:
            return self._stream.is_idle()
        except RuntimeError as error:
            raise DeviceFailed("cudaStreamQuery", str(error), "restart this worker") from error

    def close(self) -> None:
        """Let go of the memory. Twice is fine."""
        self._rooms = [None] * NUM_ROOMS

    def _gather_on_device(
        self, pool: DevicePool, runs: Sequence[CopyRun], blocks: torch.Tensor
    ) -> None:
        ids = np.concatenate([np.arange(src, src + num_blocks) for src, _, num_blocks in runs])
        self._wait_for_engine()
        index = torch.from_numpy(ids).to(blocks.device)
        torch.index_select(self._flat(pool).view(-1, blocks.shape[1]), 0, index, out=blocks)

    def _wait_for_engine(self) -> None:
        """What the engine's stream was given until now wrote the blocks that are asked for."""
        if self._stream is not None:
            self._stream.wait_for_engine()

    def _flat(self, pool: DevicePool) -> torch.Tensor:
        """[num_bytes] uint8 over a pool of the device; aliases it."""
        if self._device.type == "cuda":
            flat = torch.as_tensor(_CudaArray(pool), device=self._device)
            # Between devices it would be a copy, and the pool would never see what is written.
            assert flat.data_ptr() == pool.address, "the pool lies on another device"
            return flat
        # A device of the tests, whose memory is the host's.
        memory = (ctypes.c_uint8 * pool.num_bytes).from_address(pool.address)
        return torch.from_numpy(np.frombuffer(memoryview(memory), np.uint8))


def _gather_on_host(
    source: memoryview, runs: Sequence[CopyRun], block_bytes: int, room: _Bytes
) -> None:
    # By memcpy: torch would start threads of its own in every lane, beside those of the engine.
    pool = np.frombuffer(source, np.uint8)
    at = 0
    for src, _, num_blocks in runs:
        num_bytes = num_blocks * block_bytes
        begin = src * block_bytes
        room[at : at + num_bytes] = pool[begin : begin + num_bytes]
        at += num_bytes


def _scatter_on_host(
    staged: _Bytes, memory: memoryview, ids: npt.NDArray[np.int64], copy_bytes: CopyBytes
) -> None:
    pool = np.frombuffer(memory, np.uint8)
    block_bytes = len(staged) // len(ids)
    for src, dst, num_blocks in merge_runs(range(len(ids)), ids.tolist()):
        arrived = staged[src * block_bytes : (src + num_blocks) * block_bytes]
        copy_bytes(pool[dst * block_bytes : (dst + num_blocks) * block_bytes], arrived)


class _CudaArray:
    """A pool as torch takes memory that it did not allocate."""

    def __init__(self, pool: DevicePool) -> None:
        self.__cuda_array_interface__ = {
            "shape": (pool.num_bytes,),
            "typestr": "|u1",
            "data": (pool.address, False),
            "version": 3,
        }
