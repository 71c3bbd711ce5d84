"""A pool whose tables lie in a file of shared memory: making it, joining it, and who is alive.

Whether the blocks lie in the file too or in the memory of a device is the transport's business.
"""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer import segment
from kvtransfer.claims import Claims
from kvtransfer.device import KvSource
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import ExportUnavailable, LayoutMismatch, PeerGone, StaleIncarnation
from kvtransfer.layout import (
    HANDLE_OFFSET,
    PAGE_BYTES,
    SLOT_CLAIM,
    PoolLayout,
    PoolViews,
    read_header,
)
from kvtransfer.protocol import BlockMoves, PushReceipt, never
from kvtransfer.sending import PoolWriter
from runtime.clock import Clock
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

_Loss: TypeAlias = Callable[[], PeerGone | StaleIncarnation]


@dataclass(frozen=True, slots=True)
class MadeSegment:
    """A file that this process has made and owns, mapped."""

    export: KvExport
    path: Path
    file: int
    views: PoolViews


@dataclass(frozen=True, slots=True)
class JoinedSegment:
    """Another process's file, mapped, with a slot that is this sender's."""

    file: int
    slot: int
    layout: PoolLayout
    memory: mmap.mmap
    loss: _Loss

    def leave(self) -> None:
        """Give the slot back."""
        # A kept traceback may keep the mapping, and with it the lock; so it is given up here.
        segment.unlock(self.file, 1 + self.slot)
        os.close(self.file)


class Segments:
    """The files of one cluster in one folder, for one transport."""

    def __init__(
        self, transport: str, directory: Path, cluster: str, *, is_of_device: bool = False
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._cluster = cluster
        # The files hold tables only, and a dead sender's copies may outlive its lock for a moment:
        # what it claimed is its receiver's to clear, not the next sender's.
        self._is_of_device = is_of_device

    def make(
        self,
        layout: PoolLayout,
        owner: PoolOwner,
        host: Callable[[], str],
        handle: bytes = b"",
    ) -> MadeSegment:
        """Make a file, with `handle` at HANDLE_OFFSET.

        Removes what dead processes left in the folder first. Raises: ExportUnavailable.
        """
        name = segment.segment_name(self._cluster, owner.worker_id, owner.incarnation)
        path = self._directory / name
        if self._directory.is_dir():
            segment.remove_leftovers(self._directory)
        with segment.new_segment(path, layout.total_bytes) as file:
            memory = mmap.mmap(file, layout.total_bytes)
            segment.populate(memory)
            header = layout.pack_header()
            memory[: len(header)] = header
            memory[HANDLE_OFFSET : HANDLE_OFFSET + len(handle)] = handle
        export = KvExport(
            transport=self._transport,
            address=path.name,
            num_blocks=layout.num_blocks,
            block_bytes=layout.block_bytes,
            worker_id=WorkerId(owner.worker_id),
            incarnation=Incarnation(owner.incarnation),
            host=host(),
        )
        return MadeSegment(export, path, file, layout.views(memory))

    def join(self, export: KvExport, sender_id: str) -> JoinedSegment:
        """Map an export's file and take a slot; a large one takes a while.

        Raises: LayoutMismatch, PeerGone, StaleIncarnation, ExportUnavailable.
        """
        # Computed, not taken from the wire: an address cannot lead to any other file.
        name = segment.segment_name(self._cluster, export.worker_id, export.incarnation)
        if export.transport != self._transport or export.address != name:
            raise LayoutMismatch(f"{export.address!r} is not the address of such an export")
        file = self._open(export, self._directory / name)
        try:
            return self._join(export, file, sender_id)
        except BaseException:
            os.close(file)
            raise

    def loss_of(self, export: KvExport) -> _Loss:
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
            raise self.loss_of(export)() from None
        except OSError as error:
            raise ExportUnavailable(
                f"{path.name} cannot be opened: {error.strerror}",
                "run the workers of one host as one user",
            ) from error

    def _join(self, export: KvExport, file: int, sender_id: str) -> JoinedSegment:
        if not segment.is_locked(file, segment.OWNER_LOCK):
            raise self.loss_of(export)()
        layout = read_header(os.pread(file, PAGE_BYTES, 0))
        told = (export.num_blocks, export.block_bytes, export.incarnation)
        if (layout.num_blocks, layout.block_bytes, layout.incarnation) != told:
            raise LayoutMismatch(f"{export.address} is not the pool that its export describes")
        if layout.has_data is self._is_of_device:
            raise LayoutMismatch(f"{export.address} is a pool of another transport")
        if os.fstat(file).st_size != layout.total_bytes:
            raise LayoutMismatch(f"{export.address} has not the size that its header says")
        memory = mmap.mmap(file, layout.total_bytes)
        slots = layout.views(memory).slots
        for slot in range(layout.max_senders):
            if not segment.try_lock(file, 1 + slot):
                continue
            if self._is_of_device and slots[slot, SLOT_CLAIM]:
                segment.unlock(file, 1 + slot)
                continue
            break
        else:
            raise ExportUnavailable(
                f"{layout.max_senders} senders are connected to worker {export.worker_id}",
                "raise max_senders on the receiving worker",
            )
        segment.populate(memory)
        # The slot's former holder is dead or has left: its lock was free.
        Claims(slots).begin(slot, sender_id)
        return JoinedSegment(file, slot, layout, memory, self.loss_of(export))


@dataclass(frozen=True, slots=True)
class Grace:
    """How long what a dead sender claimed stays claimed after its lock was found free."""

    seconds: float
    clock: Clock


class SegmentDoor:
    """See `Door`. Owns the file; the kernel's lock on it says that this process lives."""

    def __init__(self, made: MadeSegment, grace: Grace | None = None) -> None:
        self._export = made.export
        self._path = made.path
        self._file = made.file
        self._claims = Claims(made.views.slots)
        self._grace = grace
        # Slots of dead senders whose lock is ours, and until when their claims stay.
        self._until_s_by_slot: dict[int, float] = {}
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
            if self._is_closed or not self._is_over(slot):
                is_clear = False
                continue
            # No new sender can take the slot while its lock is ours.
            self._claims.clear(slot)
            segment.unlock(self._file, 1 + slot)
        return is_clear

    def _is_over(self, slot: int) -> bool:
        """True with the slot's lock in our hands, once nothing of its sender writes any more."""
        if self._grace is None:
            return segment.try_lock(self._file, 1 + slot)
        now = self._grace.clock.now()
        if slot not in self._until_s_by_slot:
            if not segment.try_lock(self._file, 1 + slot):
                return False
            self._until_s_by_slot[slot] = now + self._grace.seconds
        if now < self._until_s_by_slot[slot]:
            return False
        del self._until_s_by_slot[slot]
        return True


class SegmentSender:
    """See `KvSender`. Keeps the pool's memory alive until closed, even that of a dead receiver."""

    def __init__(self, joined: JoinedSegment, writer: PoolWriter) -> None:
        self._loss = joined.loss
        self._file = joined.file
        self._leave = joined.leave
        # None once closed; the mapping goes with it.
        self._writer: PoolWriter | None = writer

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        if self._writer is None:
            raise RuntimeError("this connection is closed")
        return self._writer.push(
            source, moves, timeout_s=timeout_s, should_stop=should_stop, check_peer=self._check_peer
        )

    def check(self) -> None:
        self._check_peer()
        if self._writer is not None:
            self._writer.look_again()

    def _check_peer(self) -> None:
        if self._writer is None or not segment.is_locked(self._file, segment.OWNER_LOCK):
            raise self._loss()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if writer.close():
            self._leave()
        # Otherwise the slot is ours until the kernel ends this process, and the writer has seen to
        # it that what it writes to stays mapped as long.
