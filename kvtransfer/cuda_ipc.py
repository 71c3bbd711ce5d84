"""Blocks between GPU pools of one machine: the sender maps the receiver's pool and copies into it.

Grants, arrivals and claims are those of the shared memory transport, in a file of their own; the
blocks lie in device memory, exported once and mapped once by each sender. The sender's host polls
for the end of its copies and marks what has arrived: no event crosses a process border. What the
device does is behind `DeviceMemory`. See docs/decisions/kv-over-cuda-ipc.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvtransfer.batches import PushSettings
from kvtransfer.device import HANDLE_BYTES, DeviceMemory, DevicePool
from kvtransfer.device_writing import DeviceBlockWriter, MappedTarget
from kvtransfer.doors import OnDevice, PoolOwner
from kvtransfer.errors import ExportUnavailable, LayoutMismatch, WrongHost
from kvtransfer.host import DeviceHost, device_host, is_of_this_machine
from kvtransfer.layout import HANDLE_OFFSET, PoolLayout
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import ProbeReport
from kvtransfer.receiver import PoolReceiver
from kvtransfer.segment_pool import Grace, SegmentDoor, Segments, SegmentSender
from kvtransfer.word_checksum import WORD_BYTES
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport

NAME: Final = "cuda_ipc"
# The driver ends the copies of a dead process about when the kernel drops its locks, in no
# promised order; a batch takes milliseconds.
TEARDOWN_S: Final = 1.0


class CudaIpcTransport:
    """Pools in device memory that processes of one machine map."""

    name = NAME

    def __init__(
        self,
        memory: Callable[[], DeviceMemory],
        directory: Path = Path("/dev/shm"),
        settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_senders: int = 128,
        cluster: str = "tandem",
        teardown_s: float = TEARDOWN_S,
    ) -> None:
        """`memory` is asked for when it is needed; it raises ExportUnavailable without a device."""
        self._memory = memory
        self._directory = directory
        self._segments = Segments(NAME, directory, cluster, is_of_device=True)
        self._settings = settings or PushSettings()
        self._clock = clock or MonotonicClock()
        self._max_senders = max_senders
        self._teardown_s = teardown_s

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> PoolReceiver:
        """See `Transport.create_receiver`. The pool is memory of the device."""
        if block_bytes % WORD_BYTES:
            raise LayoutMismatch(f"KV blocks of {block_bytes} bytes are no whole number of words")
        layout = PoolLayout(num_blocks, block_bytes, incarnation, self._max_senders, has_data=False)
        owner = PoolOwner(worker_id, incarnation)
        memory = self._memory()
        pool = memory.allocate(layout.data_bytes)
        try:
            made = self._segments.make(
                layout, owner, lambda: str(self._own_host(memory)), pool.handle()
            )
        except BaseException:
            pool.close()
            raise
        receiver = PoolReceiver(owner, layout, made.views, OnDevice(memory, pool))
        receiver.add_door(SegmentDoor(made, Grace(self._teardown_s, self._clock)))
        return receiver

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        theirs = DeviceHost.parse(export.host)
        if theirs is None or not is_of_this_machine(export.host):
            return f"the GPUs of {export.host} are not of this machine"
        try:
            memory = self._memory()
        except ExportUnavailable as error:
            return str(error)
        problem = self._own_host(memory).problem_with(theirs)
        return problem or memory.reach_problem(theirs.device_id)

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> SegmentSender:
        """See `Transport.connect`."""
        own_host = str(self._own_host(self._memory()))
        if self.can_reach(export) is not None:
            raise WrongHost(export.worker_id, export.host, own_host)
        if export.block_bytes != block_bytes:
            raise LayoutMismatch(
                f"worker {export.worker_id} has KV blocks of {export.block_bytes} bytes, this "
                f"worker of {block_bytes}"
            )
        joined = self._segments.join(export, sender_id)
        try:
            layout, memory = joined.layout, self._memory()
            handle = bytes(joined.memory[HANDLE_OFFSET : HANDLE_OFFSET + HANDLE_BYTES])
            pool = memory.open(handle, layout.data_bytes)
            try:
                stream = memory.new_stream()
            except BaseException:
                pool.close()
                raise
        except BaseException:
            joined.leave()
            raise
        target = MappedTarget(layout, layout.views(joined.memory), joined.slot, pool)
        writer = DeviceBlockWriter(target, stream, self._settings, self._clock)
        return SegmentSender(joined, writer)

    def probe(self, clock: Clock) -> ProbeReport:
        """See `Transport.probe`. Within one process nothing is mapped: the copy alone counts."""
        return measure_transport(self, clock, self.new_pool)

    def new_pool(self, content: bytes) -> DevicePool:
        """Device memory to push from, with these bytes in it. Raises: ExportUnavailable."""
        pool = self._memory().allocate(len(content))
        pool.write(0, content)
        return pool

    def _own_host(self, memory: DeviceMemory) -> DeviceHost:
        return device_host(self._directory, memory.device_id)
