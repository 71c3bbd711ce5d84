"""Blocks between processes of one host: the sender maps the receiver's pool and writes into it.

A push is a memcpy to the block's final place. Linux only. A forked child shares its parent's
kernel locks and so keeps it alive in the eyes of others: start processes with spawn.
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer import segment
from kvtransfer.batches import PushSettings
from kvtransfer.claims import Claims
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import (
    ExportUnavailable,
    LayoutMismatch,
    PeerGone,
    StaleIncarnation,
    WrongHost,
)
from kvtransfer.host import is_of_this_machine, shared_memory_identity
from kvtransfer.layout import PAGE_BYTES, PoolLayout, read_header
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import BlockMoves, ProbeReport, PushReceipt, never
from kvtransfer.receiver import PoolReceiver
from kvtransfer.sending import BlockWriter
from runtime.clock import Clock, MonotonicClock
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

NAME = "shared_memory"

_Loss: TypeAlias = Callable[[], PeerGone | StaleIncarnation]


class SharedMemoryTransport:
    """Pools as files in a tmpfs that both processes see."""

    name = NAME

    def __init__(
        self,
        directory: Path = Path("/dev/shm"),
        settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_senders: int = 128,
        cluster: str = "tandem",
    ) -> None:
        self._directory = directory
        self._cluster = cluster
        self._settings = settings or PushSettings()
        self._clock = clock or MonotonicClock()
        self._max_senders = max_senders

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> PoolReceiver:
        """See `Transport.create_receiver`. Removes what dead processes left in the folder first."""
        layout = PoolLayout(num_blocks, block_bytes, incarnation, self._max_senders)
        path = self._directory / segment.segment_name(self._cluster, worker_id, incarnation)
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
        views = layout.views(memory)
        receiver = PoolReceiver(PoolOwner(worker_id, incarnation), layout, views)
        receiver.add_door(SharedMemoryDoor(export, path, file, Claims(views.slots)))
        return receiver

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        if export.host == shared_memory_identity(self._directory):
            return None
        if is_of_this_machine(export.host):
            return "another /dev/shm of this machine; share one between the containers"
        return f"the memory of {export.host} is not seen here"

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
        name = segment.segment_name(self._cluster, export.worker_id, export.incarnation)
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

    def _loss_of(self, export: KvExport) -> _Loss:
        """Why an export has no owner: its worker lives on as another incarnation, or not at all."""

        def loss() -> PeerGone | StaleIncarnation:
            lives = segment.lives_of(self._directory, self._cluster, export.worker_id)
            newest = max(lives, default=0)
            if newest > export.incarnation:
                return StaleIncarnation(export.worker_id, export.incarnation, newest)
            return PeerGone(export.worker_id, export.incarnation)

        return loss

    def _open(self, export: KvExport, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise self._loss_of(export)() from None
        except OSError as error:
            raise ExportUnavailable(
                f"{path.name} cannot be opened: {error.strerror}",
                "run the workers of one host as one user",
            ) from error

    def _join(self, export: KvExport, file: int, sender_id: str) -> "SharedMemorySender":
        if not segment.is_locked(file, segment.OWNER_LOCK):
            raise self._loss_of(export)()
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
        Claims(views.slots).begin(slot, sender_id)
        writer = BlockWriter(views, layout.block_bytes, slot, self._settings, self._clock)
        return SharedMemorySender(self._loss_of(export), file, slot, writer)


class SharedMemoryDoor:
    """See `Door`. Owns the file; the kernel's lock on it says that this process lives."""

    def __init__(self, export: KvExport, path: Path, file: int, claims: Claims) -> None:
        self._export = export
        self._path = path
        self._file = file
        self._claims = claims
        self._is_closed = False

    def export(self) -> KvExport:
        return self._export

    def is_writing(self, block_ids: npt.NDArray[np.int64]) -> bool:
        return not self._drop_claims(self._claims.writing_slots(block_ids))

    def forget_sender(self, sender_id: str) -> bool:
        return self._drop_claims(self._claims.slots_of(sender_id))

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
            self._claims.clear(slot)
            segment.unlock(self._file, 1 + slot)
        return is_clear


class SharedMemorySender:
    """See `KvSender`. Keeps the pool's memory alive until closed, even that of a dead receiver."""

    def __init__(self, loss: _Loss, file: int, slot: int, writer: BlockWriter) -> None:
        self._loss = loss
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
            raise self._loss()

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer = None
        # A kept traceback may keep the mapping, and with it the lock; so it is given up here.
        segment.unlock(self._file, 1 + self._slot)
        os.close(self._file)
