"""Blocks between processes of one host: the sender maps the receiver's pool and writes into it.

A push is a memcpy to the block's final place. Linux only. A forked child shares its parent's
kernel locks and so keeps it alive in the eyes of others: start processes with spawn.
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from kvtransfer import segment
from kvtransfer.checksum import sender_key
from kvtransfer.errors import (
    ExportUnavailable,
    LayoutMismatch,
    PeerGone,
    StaleIncarnation,
    WrongHost,
)
from kvtransfer.host import shared_memory_identity
from kvtransfer.layout import (
    PAGE_BYTES,
    SLOT_CLAIM,
    SLOT_SENDER_KEY,
    PoolLayout,
    PoolViews,
    read_header,
)
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import Arrival, BlockMoves, Ids, ProbeReport, PushReceipt, never
from kvtransfer.receiving import ReceivedBlocks
from kvtransfer.sending import BlockWriter, PushSettings
from runtime.clock import Clock, MonotonicClock
from scheduling.ids import Incarnation, WorkerId
from scheduling.messages import KvExport

NAME = "shared_memory"


class SharedMemoryTransport:
    """Pools as files in a tmpfs that both processes see."""

    name = NAME

    def __init__(
        self,
        directory: Path = Path("/dev/shm"),
        settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_senders: int = 128,
    ) -> None:
        self._directory = directory
        self._settings = settings or PushSettings()
        self._clock = clock or MonotonicClock()
        self._max_senders = max_senders

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> "SharedMemoryReceiver":
        """See `Transport.create_receiver`. Removes what dead processes left in the folder first."""
        layout = PoolLayout(num_blocks, block_bytes, incarnation, self._max_senders)
        path = self._directory / segment.segment_name(worker_id, incarnation)
        if self._directory.is_dir():
            segment.remove_leftovers(self._directory)
        with segment.new_segment(path, layout.total_bytes) as file:
            memory = mmap.mmap(file, layout.total_bytes)
            segment.populate(memory)
            header = layout.pack_header()
            memory[: len(header)] = header
        export = KvExport(
            transport=NAME,
            address=path.name,
            num_blocks=num_blocks,
            block_bytes=block_bytes,
            worker_id=WorkerId(worker_id),
            incarnation=Incarnation(incarnation),
            host=shared_memory_identity(self._directory),
        )
        return SharedMemoryReceiver(export, path, file, layout.views(memory))

    def connect(
        self, export: KvExport, *, sender_id: str, block_bytes: int
    ) -> "SharedMemorySender":
        """See `Transport.connect`. Maps every page: a large pool takes a while."""
        own_host = shared_memory_identity(self._directory)
        if export.host != own_host:
            raise WrongHost(export.worker_id, export.host, own_host)
        if export.block_bytes != block_bytes:
            raise LayoutMismatch(
                f"worker {export.worker_id} has KV blocks of {export.block_bytes} bytes, this "
                f"worker of {block_bytes}"
            )
        # Computed, not taken from the wire: an address cannot lead to any other file.
        name = segment.segment_name(export.worker_id, export.incarnation)
        if export.transport != NAME or export.address != name:
            raise LayoutMismatch(f"{export.address!r} is not the address of such an export")
        file = self._open(export, self._directory / name)
        try:
            return self._join(export, file, sender_id)
        except BaseException:
            os.close(file)
            raise

    def probe(self, clock: Clock) -> ProbeReport:
        """See `Transport.probe`."""
        return measure_transport(self, clock)

    def _open(self, export: KvExport, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise _loss_of(export, self._directory) from None
        except OSError as error:
            raise ExportUnavailable(
                f"{path.name} cannot be opened: {error.strerror}",
                "run the workers of one host as one user",
            ) from error

    def _join(self, export: KvExport, file: int, sender_id: str) -> "SharedMemorySender":
        if not segment.is_locked(file, segment.OWNER_LOCK):
            raise _loss_of(export, self._directory)
        layout = read_header(os.pread(file, PAGE_BYTES, 0))
        told = (export.num_blocks, export.block_bytes, export.incarnation)
        if (layout.num_blocks, layout.block_bytes, layout.incarnation) != told:
            raise LayoutMismatch(f"{export.address} is not the pool that its export describes")
        if os.fstat(file).st_size != layout.total_bytes:
            raise LayoutMismatch(f"{export.address} has not the size that its header says")
        for slot in range(layout.max_senders):
            if segment.try_lock(file, 1 + slot):
                break
        else:
            raise ExportUnavailable(
                f"{layout.max_senders} senders are connected to worker {export.worker_id}",
                "raise max_senders on the receiving worker",
            )
        memory = mmap.mmap(file, layout.total_bytes)
        segment.populate(memory)
        views = layout.views(memory)
        # The slot's former holder is dead or has left: its lock was free.
        views.slots[slot, SLOT_CLAIM] = 0
        views.slots[slot, SLOT_SENDER_KEY] = sender_key(sender_id)
        writer = BlockWriter(views, layout.block_bytes, slot, self._settings, self._clock)
        return SharedMemorySender(export, self._directory, file, slot, writer)


class SharedMemoryReceiver:
    """See `KvReceiver`. Owns the file; the kernel's lock on it says that this process lives."""

    def __init__(self, export: KvExport, path: Path, file: int, views: PoolViews) -> None:
        self._export = export
        self._path = path
        self._file = file
        self._views = views
        self._blocks = ReceivedBlocks(views, export.block_bytes)
        self._is_closed = False

    def export(self) -> KvExport:
        return self._export

    def buffer(self) -> memoryview:
        return self._views.data.data

    def expect(self, block_ids: Ids, generations: Ids) -> None:
        self._blocks.expect(block_ids, generations)

    def poll(self, block_ids: Ids, generations: Ids) -> Arrival:
        return self._blocks.poll(block_ids, generations)

    def revoke(self, block_ids: Ids) -> None:
        self._blocks.revoke(block_ids)

    def quarantine_clear(self, block_ids: Ids) -> bool:
        return self._drop_claims(self._blocks.writing_slots(block_ids))

    def forget_sender(self, sender_id: str) -> bool:
        return self._drop_claims(self._blocks.slots_of(sender_id))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        # Unlocked before it is unlinked: whoever finds no name finds no living owner either.
        segment.unlock(self._file, segment.OWNER_LOCK)
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _drop_claims(self, slots: list[int]) -> bool:
        """Drop those whose sender is dead, by the kernel's word; True when all were."""
        is_clear = True
        for slot in slots:
            if self._is_closed or not segment.try_lock(self._file, 1 + slot):
                is_clear = False
                continue
            # No new sender can take the slot while its lock is ours.
            self._blocks.clear_slot(slot)
            segment.unlock(self._file, 1 + slot)
        return is_clear


class SharedMemorySender:
    """See `KvSender`. Keeps the pool's memory alive until closed, even that of a dead receiver."""

    def __init__(
        self, export: KvExport, directory: Path, file: int, slot: int, writer: BlockWriter
    ) -> None:
        self._export = export
        self._directory = directory
        self._file = file
        self._slot = slot
        # None once closed; the mapping goes with it.
        self._writer: BlockWriter | None = writer

    def push(
        self,
        source: memoryview,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        if self._writer is None:
            raise RuntimeError("this connection is closed")
        return self._writer.push(
            source, moves, timeout_s=timeout_s, should_stop=should_stop, check_peer=self.check
        )

    def check(self) -> None:
        if self._writer is None or not segment.is_locked(self._file, segment.OWNER_LOCK):
            raise _loss_of(self._export, self._directory)

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer = None
        # A kept traceback may keep the mapping, and with it the lock; so it is given up here.
        segment.unlock(self._file, 1 + self._slot)
        os.close(self._file)


def _loss_of(export: KvExport, directory: Path) -> PeerGone | StaleIncarnation:
    """Why an export has no owner: its worker lives on as another incarnation, or not at all."""
    newest = max(segment.lives_of(directory, export.worker_id), default=0)
    if newest > export.incarnation:
        return StaleIncarnation(export.worker_id, export.incarnation, newest)
    return PeerGone(export.worker_id, export.incarnation)
