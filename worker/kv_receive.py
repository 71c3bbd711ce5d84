"""The decode side's hand on the KV transfer: grants blocks, watches arrivals, clears quarantine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvtransfer.protocol import KvReceiver
from runtime.clock import Clock
from runtime.logging import get_logger
from scheduling.errors import KvCorrupted
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    ExpectKv,
    KvAction,
    KvArrived,
    KvRefused,
    KvSwapped,
    Push,
    QuarantineCleared,
    RevokeKv,
    SwapIn,
    SwapOut,
    WorkerEvent,
)

log = get_logger()


class KvCopies(Protocol):
    """Host memory for KV blocks; see engine/kv_swap.py."""

    def take_out(self, block_ids: Sequence[int], swap_block_ids: Sequence[int]) -> int: ...

    def bring_back(self, swap_block_ids: Sequence[int], block_ids: Sequence[int]) -> int: ...


@dataclass(frozen=True, slots=True)
class _Awaited:
    block_ids: tuple[BlockId, ...]
    generations: tuple[Generation, ...]
    until_s: float


class KvReceive:
    """Used by the engine thread only."""

    def __init__(
        self,
        receiver: KvReceiver,
        arrival_timeout_s: float,
        clock: Clock,
        swap: KvCopies | None = None,
    ) -> None:
        self._receiver = receiver
        # None where there is no host memory for KV.
        self._swap = swap
        self._arrival_timeout_s = arrival_timeout_s
        self._clock = clock
        self._awaited: dict[TaskId, _Awaited] = {}
        self._quarantined: dict[TaskId, tuple[BlockId, ...]] = {}
        # Not told yet; at most those of one turn of the engine.
        self._swapped: list[KvSwapped] = []

    @property
    def is_polling(self) -> bool:
        """Completion is by flags in memory: someone has to look."""
        return bool(self._awaited or self._quarantined)

    def perform(self, action: KvAction) -> None:
        """Grant, watch or revoke blocks; swap them."""
        match action:
            case ExpectKv(block_ids, generations):
                self._receiver.expect(block_ids, generations)
            case AwaitKv(task_id, block_ids, generations):
                until_s = self._clock.now() + self._arrival_timeout_s
                self._awaited[task_id] = _Awaited(block_ids, generations, until_s)
            case RevokeKv(task_id, block_ids):
                self._awaited.pop(task_id, None)
                self._receiver.revoke(block_ids)
                self._quarantined[task_id] = block_ids
            case SwapOut(block_ids, swap_block_ids):
                assert self._swap is not None
                started_s = self._clock.now()
                num_copies = self._swap.take_out(block_ids, swap_block_ids)
                self._note_copies(len(block_ids), num_copies, started_s, is_out=True)
            case SwapIn(swap_block_ids, block_ids):
                assert self._swap is not None
                started_s = self._clock.now()
                num_copies = self._swap.bring_back(swap_block_ids, block_ids)
                self._note_copies(len(block_ids), num_copies, started_s, is_out=False)
            case Push() | CancelPush():
                raise ValueError(f"a decode worker pushes no KV: {action}")

    def poll(self) -> list[WorkerEvent]:
        """What arrived, failed, was cleared or swapped since the last look."""
        events: list[WorkerEvent] = [*self._swapped]
        self._swapped.clear()
        for task_id, awaited in list(self._awaited.items()):
            event = self._look_at(task_id, awaited)
            if event is not None:
                del self._awaited[task_id]
                events.append(event)
        for task_id, block_ids in list(self._quarantined.items()):
            if self._receiver.quarantine_clear(block_ids):
                del self._quarantined[task_id]
                events.append(QuarantineCleared(task_id))
        return events

    def _note_copies(
        self, num_blocks: int, num_copies: int, started_s: float, *, is_out: bool
    ) -> None:
        copy_s = self._clock.now() - started_s
        event, copy_ms = "kv_swapped_out" if is_out else "kv_swapped_in", round(1000 * copy_s, 3)
        log.info(event, num_blocks=num_blocks, num_copies=num_copies, copy_ms=copy_ms)
        self._swapped.append(KvSwapped(num_blocks, copy_s, is_out))

    def _look_at(self, task_id: TaskId, awaited: _Awaited) -> WorkerEvent | None:
        arrival = self._receiver.poll(awaited.block_ids, awaited.generations)
        if arrival.is_complete:
            return KvArrived(task_id, arrival.transport)
        bad = arrival.damaged_block_ids or arrival.stale_block_ids
        if bad:
            what = "a wrong checksum" if arrival.damaged_block_ids else "a stale generation"
            log.error("kv_corrupted", task_id=task_id, num_blocks=len(bad), problem=what)
            message = f"{len(bad)} KV blocks arrived with {what}"
            return KvRefused(task_id, KvCorrupted.code, message)
        if self._clock.now() >= awaited.until_s:
            num_missing = len(awaited.block_ids) - arrival.num_arrived
            log.warning("kv_arrival_timed_out", task_id=task_id, num_missing=num_missing)
            message = f"{num_missing} KV blocks did not arrive in {self._arrival_timeout_s:g} s"
            return KvRefused(task_id, "transfer_failed", message)
        return None
