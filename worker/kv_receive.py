"""The decode side's hand on the KV transfer: grants blocks, watches arrivals, clears quarantine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from kvtransfer.errors import CopyStuck
from kvtransfer.protocol import Ids, KvReceiver
from kvtransfer.slices import WHOLE, PoolSlices
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

# Swaps wait for the passes before them, and take milliseconds then.
SWAP_STUCK_S: Final = 60.0


class FinishedCopies(Protocol):
    """See engine/kv_swap.py."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def num_copies(self) -> int: ...

    @property
    def copy_s(self) -> float: ...

    @property
    def is_out(self) -> bool: ...


class KvCopies(Protocol):
    """Host memory for KV blocks; see engine/kv_swap.py."""

    @property
    def is_immediate(self) -> bool: ...

    @property
    def is_copying(self) -> bool: ...

    def finished(self) -> Sequence[FinishedCopies]: ...

    def settle(self, block_ids: Sequence[int]) -> None: ...

    def take_out(self, block_ids: Sequence[int], swap_block_ids: Sequence[int]) -> int: ...

    def bring_back(self, swap_block_ids: Sequence[int], block_ids: Sequence[int]) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Awaited:
    # Units of the pool, and the generation of each.
    units: Ids
    generations: Ids
    until_s: float


class KvReceive:
    """Used by the engine thread only."""

    def __init__(
        self,
        receiver: KvReceiver,
        arrival_timeout_s: float,
        clock: Clock,
        swap: KvCopies | None = None,
        slices: PoolSlices = WHOLE,
    ) -> None:
        """`slices`: what the receiver's pool holds of every block; it counts units."""
        self._receiver = receiver
        self._slices = slices
        # None where there is no host memory for KV.
        self._swap = swap
        self._arrival_timeout_s = arrival_timeout_s
        self._clock = clock
        self._awaited: dict[TaskId, _Awaited] = {}
        self._quarantined: dict[TaskId, Ids] = {}
        # Not told yet; at most those of one turn of the engine.
        self._swapped: list[KvSwapped] = []
        # Since when copies of swaps are under way of which none has ended.
        self._copying_since_s: float | None = None

    @property
    def is_polling(self) -> bool:
        """Completion is by flags in memory: someone has to look."""
        is_copying = self._swap is not None and self._swap.is_copying
        return bool(self._awaited or self._quarantined or is_copying)

    def perform(self, action: KvAction) -> None:
        """Grant, watch or revoke blocks; swap them."""
        match action:
            case ExpectKv(block_ids, generations):
                if self._swap is not None:
                    # Senders write as soon as they may.
                    self._swap.settle(block_ids)
                self._receiver.expect(*self._units_of(block_ids, generations))
            case AwaitKv(task_id, block_ids, generations):
                until_s = self._clock.now() + self._arrival_timeout_s
                self._awaited[task_id] = _Awaited(*self._units_of(block_ids, generations), until_s)
            case RevokeKv(task_id, block_ids):
                self._awaited.pop(task_id, None)
                units = self._slices.units_of(block_ids)
                self._receiver.revoke(units)
                self._quarantined[task_id] = units
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
        """What arrived, failed, was cleared or swapped since the last look.

        Raises: CopyStuck where a swap does not end. Then nothing can be known of its blocks, and
        the worker has to end: other workers compute on what it had.
        """
        if self._swap is not None:
            finished = self._swap.finished()
            for swap in finished:
                self._note(swap.num_blocks, swap.num_copies, swap.copy_s, is_out=swap.is_out)
            self._watch_copies(self._swap.is_copying and not finished)
        events: list[WorkerEvent] = [*self._swapped]
        self._swapped.clear()
        for task_id, awaited in list(self._awaited.items()):
            event = self._look_at(task_id, awaited)
            if event is not None:
                del self._awaited[task_id]
                events.append(event)
        for task_id, units in list(self._quarantined.items()):
            if self._receiver.quarantine_clear(units):
                del self._quarantined[task_id]
                events.append(QuarantineCleared(task_id))
        return events

    def _watch_copies(self, are_standing: bool) -> None:
        if not are_standing:
            self._copying_since_s = None
            return
        now = self._clock.now()
        if self._copying_since_s is None:
            self._copying_since_s = now
        elif now - self._copying_since_s >= SWAP_STUCK_S:
            raise CopyStuck("of a swap", SWAP_STUCK_S)

    def _units_of(
        self, block_ids: tuple[BlockId, ...], generations: tuple[Generation, ...]
    ) -> tuple[Ids, Ids]:
        return self._slices.units_of(block_ids), self._slices.for_units(generations)

    def _note_copies(
        self, num_blocks: int, num_copies: int, started_s: float, *, is_out: bool
    ) -> None:
        if self._swap is not None and self._swap.is_immediate:
            copy_s = self._clock.now() - started_s
            self._note(num_blocks, num_copies, copy_s, is_out=is_out)

    def _note(self, num_blocks: int, num_copies: int, copy_s: float, *, is_out: bool) -> None:
        event, copy_ms = "kv_swapped_out" if is_out else "kv_swapped_in", round(1000 * copy_s, 3)
        log.info(event, num_blocks=num_blocks, num_copies=num_copies, copy_ms=copy_ms)
        self._swapped.append(KvSwapped(num_blocks, copy_s, is_out))

    def _look_at(self, task_id: TaskId, awaited: _Awaited) -> WorkerEvent | None:
        arrival = self._receiver.poll(awaited.units, awaited.generations)
        if arrival.is_complete:
            return KvArrived(task_id, arrival.transport)
        bad = arrival.damaged_block_ids or arrival.stale_block_ids
        if bad:
            what = "a wrong checksum" if arrival.damaged_block_ids else "a stale generation"
            num_bad = len({unit // self._slices.num for unit in bad})
            log.error("kv_corrupted", task_id=task_id, num_blocks=num_bad, problem=what)
            message = f"{num_bad} KV blocks arrived with {what}"
            return KvRefused(task_id, KvCorrupted.code, message)
        if self._clock.now() >= awaited.until_s:
            # As many as the missing slices make, whichever blocks they are of.
            num_missing = -(-(len(awaited.units) - arrival.num_arrived) // self._slices.num)
            log.warning("kv_arrival_timed_out", task_id=task_id, num_missing=num_missing)
            message = f"{num_missing} KV blocks did not arrive in {self._arrival_timeout_s:g} s"
            return KvRefused(task_id, "transfer_failed", message)
        return None
