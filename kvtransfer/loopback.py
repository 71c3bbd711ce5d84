"""Blocks within one process, under the same contract: for tests and for a one-process cluster."""

import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import PushSettings
from kvtransfer.claims import Claims
from kvtransfer.device import KvSource
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import (
    ExportUnavailable,
    LayoutMismatch,
    PeerGone,
    StaleIncarnation,
    WrongHost,
)
from kvtransfer.layout import PoolLayout, PoolViews
from kvtransfer.probe import measure_transport
from kvtransfer.protocol import BlockMoves, ProbeReport, PushReceipt, never
from kvtransfer.receiver import PoolReceiver
from kvtransfer.sending import BlockWriter
from runtime.clock import Clock, MonotonicClock
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

NAME = "loopback"

_numbers = itertools.count(1)


class LoopbackTransport:
    """Pools that senders of the same transport object can reach."""

    name = NAME

    def __init__(
        self,
        settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_senders: int = 128,
    ) -> None:
        self._settings = settings or PushSettings()
        self._clock = clock or MonotonicClock()
        self._max_senders = max_senders
        self._host = f"process-{os.getpid()}/{next(_numbers)}"
        # Guards what connects and closes; pushes and polls go without it.
        self._lock = threading.Lock()
        self._door_by_life: dict[tuple[str, int], LoopbackDoor] = {}

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> PoolReceiver:
        """See `Transport.create_receiver`."""
        export = KvExport(
            transport=NAME,
            address=f"{worker_id}.{incarnation}",
            num_blocks=num_blocks,
            block_bytes=block_bytes,
            worker_id=WorkerId(worker_id),
            incarnation=Incarnation(incarnation),
            host=self._host,
        )
        layout = PoolLayout(num_blocks, block_bytes, incarnation, self._max_senders)
        views = layout.views(bytearray(layout.total_bytes))
        receiver = PoolReceiver(PoolOwner(worker_id, incarnation), layout, views)
        with self._lock:
            if (worker_id, incarnation) in self._door_by_life:
                raise ExportUnavailable(
                    f"{export.address} is exported already",
                    "give every worker its own id and every start a new incarnation",
                )
            door = LoopbackDoor(self, export, views)
            self._door_by_life[worker_id, incarnation] = door
        receiver.add_door(door)
        return receiver

    def can_reach(self, export: KvExport) -> str | None:
        """See `Transport.can_reach`."""
        return None if export.host == self._host else f"{export.host} is another process"

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> "LoopbackSender":
        """See `Transport.connect`."""
        if export.host != self._host:
            raise WrongHost(export.worker_id, export.host, self._host)
        if export.block_bytes != block_bytes:
            raise LayoutMismatch(
                f"worker {export.worker_id} has KV blocks of {export.block_bytes} bytes, this "
                f"worker of {block_bytes}"
            )
        with self._lock:
            door = self._door_by_life.get((export.worker_id, export.incarnation))
            if door is None:
                raise self._loss_of(export)
            # Scratch is set aside by the pool, behind all of its doors.
            told = replace(export, num_scratch_blocks=0)
            if door.export() != told:
                raise LayoutMismatch(f"{export.address} is not the pool that its export describes")
            slot = door.take_slot(sender_id)
            views = door.views
        writer = BlockWriter(views, block_bytes, slot, self._settings, self._clock)
        return LoopbackSender(self, door, slot, writer)

    def probe(self, clock: Clock) -> ProbeReport:
        """See `Transport.probe`."""
        return measure_transport(self, clock)

    def require_open(self, export: KvExport) -> None:
        """Raises: PeerGone, StaleIncarnation once the receiver of the export is closed."""
        with self._lock:
            if (export.worker_id, export.incarnation) not in self._door_by_life:
                raise self._loss_of(export)

    def remove(self, export: KvExport) -> None:
        """End an export."""
        with self._lock:
            self._door_by_life.pop((export.worker_id, export.incarnation), None)

    def _loss_of(self, export: KvExport) -> PeerGone | StaleIncarnation:
        lives = [life for worker, life in self._door_by_life if worker == export.worker_id]
        newest = max(lives, default=0)
        if newest > export.incarnation:
            return StaleIncarnation(export.worker_id, export.incarnation, newest)
        return PeerGone(export.worker_id, export.incarnation)


class LoopbackDoor:
    """See `Door`."""

    def __init__(self, transport: LoopbackTransport, export: KvExport, views: PoolViews) -> None:
        self._transport = transport
        self._export = export
        self.views = views
        self._claims = Claims(views.slots)
        self._slots_in_use: set[int] = set()

    def export(self) -> KvExport:
        return self._export

    def is_writing(self, block_ids: npt.NDArray[np.int64]) -> bool:
        return bool(self._claims.writing_slots(block_ids))

    def forget_sender(self, sender_id: str) -> bool:
        # A thread cannot die in the middle of a copy: whoever has a claim lives.
        return not self._claims.slots_of(sender_id)

    def close(self) -> None:
        self._transport.remove(self._export)

    def take_slot(self, sender_id: str) -> int:
        """A slot for a new sender. The transport calls it under its lock."""
        for slot in range(len(self.views.slots)):
            if slot not in self._slots_in_use:
                self._slots_in_use.add(slot)
                self._claims.begin(slot, sender_id)
                return slot
        raise ExportUnavailable(
            f"{len(self.views.slots)} senders are connected to worker {self._export.worker_id}",
            "raise max_senders on the receiving worker",
        )

    def give_slot_back(self, slot: int) -> None:
        """The sender of the slot has left."""
        self._slots_in_use.discard(slot)


class LoopbackSender:
    """See `KvSender`."""

    def __init__(
        self,
        transport: LoopbackTransport,
        door: LoopbackDoor,
        slot: int,
        writer: BlockWriter,
    ) -> None:
        self._transport = transport
        self._door = door
        self._slot = slot
        self._writer = writer
        self._is_closed = False

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        if self._is_closed:
            raise RuntimeError("this connection is closed")
        return self._writer.push(
            source, moves, timeout_s=timeout_s, should_stop=should_stop, check_peer=self.check
        )

    def check(self) -> None:
        self._transport.require_open(self._door.export())

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._door.give_slot_back(self._slot)
