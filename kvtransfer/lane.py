"""One peer's queue of pushes and the thread that performs them."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from kvtransfer.choice import ChosenPath, connect_best
from kvtransfer.device import KvSource
from kvtransfer.errors import (
    BacklogFull,
    PathTooSlow,
    PusherClosed,
    PushFailed,
    StaleIncarnation,
    TransferCancelled,
    TransferError,
    TransferTimeout,
)
from kvtransfer.probe import measure_path
from kvtransfer.protocol import BlockMoves, KvSender, PushReceipt, Transport
from kvtransfer.slices import is_first_rank
from runtime.clock import Clock
from runtime.logging import get_logger
from scheduling.kv_export import KvExport

log = get_logger()


@dataclass(frozen=True, slots=True)
class PushJob:
    """Blocks of the source pool to push to one peer."""

    export: KvExport
    moves: BlockMoves
    # From submit to published, waiting included.
    timeout_s: float


PushOutcome: TypeAlias = PushReceipt | TransferError
OnDone: TypeAlias = Callable[[PushJob, PushOutcome], None]
# A lane has nobody to talk to any more. Called on its thread; False: it was needed after all.
OnIdle: TypeAlias = Callable[["PeerLane"], bool]


@dataclass(frozen=True, slots=True)
class LaneOwner:
    """What a lane gives back to its pusher."""

    on_done: OnDone
    may_retire: OnIdle


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """Who sends, and the bounds of its queues."""

    # Names one life of the sending worker, such as "prefill-0#17".
    sender_id: str
    block_bytes: int
    max_jobs_per_peer: int = 256
    # How often an idle lane looks whether its peer lives: a dead peer's memory stays allocated
    # until it is unmapped here.
    idle_check_s: float = 1.0
    # After this long without a job and without a living peer, a lane ends itself.
    retire_after_s: float = 60.0
    # How long `close` waits for a cancelled lane.
    cancel_timeout_s: float = 5.0
    # A way that is measured to be slower is not used; 0: any is.
    min_bytes_per_s: float = 0.0
    # A peer whose every way was too slow is not measured again before.
    remeasure_after_s: float = 30.0


@dataclass(slots=True)
class _Queued:
    job: PushJob
    deadline_at_s: float
    # Set by any thread, read by the lane's thread.
    is_cancelled: bool = False


class PeerLane:
    """A bounded queue and a thread for the pushes to one worker name."""

    def __init__(
        self,
        worker_id: str,
        transport_by_name: Mapping[str, Transport],
        source: KvSource,
        owner: LaneOwner,
        settings: LaneSettings,
        clock: Clock,
    ) -> None:
        self.worker_id = worker_id
        self._transport_by_name = transport_by_name
        self._source = source
        self._owner = owner
        self._settings = settings
        self._clock = clock
        # Guards everything below up to the blank line, and wakes the thread.
        self._changed = threading.Condition()
        self._queue: deque[_Queued] = deque()
        self._running: _Queued | None = None
        # The newest life of the peer that a job was for.
        self._incarnation = 0
        self._to_prepare: KvExport | None = None
        self._is_closing = False
        self._must_cancel = False

        # The thread's own.
        self._connected: tuple[KvExport, ChosenPath] | None = None
        # The peer was too slow, and until when that is taken for granted.
        self._refused: tuple[KvExport, PathTooSlow, float] | None = None
        self._used_at_s = clock.now()
        # The life of the peer, and the transport, that the log has heard of.
        self._logged: tuple[int, str] | None = None
        # What of our transports that life did not have, as the log has heard.
        self._not_offered: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._run, name=f"kv-push-{worker_id}", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        with self._changed:
            return len(self._queue) < self._settings.max_jobs_per_peer

    def submit(self, job: PushJob) -> None:
        """See `Pusher.submit`."""
        with self._changed:
            self._check_life(job.export)
            self._incarnation = job.export.incarnation
            if len(self._queue) >= self._settings.max_jobs_per_peer:
                raise BacklogFull(self.worker_id, self._settings.max_jobs_per_peer)
            self._queue.append(_Queued(job, self._clock.now() + job.timeout_s))
            self._changed.notify()

    def prepare(self, export: KvExport) -> None:
        """See `Pusher.prepare`."""
        with self._changed:
            # An announcement proves nothing, so it makes no other life stale.
            self._check_life(export)
            self._to_prepare = export
            self._changed.notify()

    def cancel(self, transfer_id: str) -> None:
        """See `Pusher.cancel`."""
        with self._changed:
            known = [*self._queue, *([self._running] if self._running else [])]
            for item in known:
                if item.job.moves.transfer_id == transfer_id:
                    item.is_cancelled = True

    def begin_close(self, *, must_cancel: bool) -> None:
        """End the thread once the queue is empty; `must_cancel` empties it now."""
        with self._changed:
            self._is_closing = True
            self._must_cancel |= must_cancel
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; True when it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _check_life(self, export: KvExport) -> None:
        if self._is_closing:
            raise PusherClosed
        if export.incarnation < self._incarnation:
            raise StaleIncarnation(self.worker_id, export.incarnation, self._incarnation)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                if not (self._queue or self._is_closing or self._to_prepare):
                    self._changed.wait(self._settings.idle_check_s)
                if self._queue:
                    self._running = self._queue.popleft()
                elif self._is_closing:
                    break
                item, export, self._to_prepare = self._running, self._to_prepare, None
            if item is not None:
                self._used_at_s = self._clock.now()
                self._answer(item, self._outcome_of(item))
            elif export is not None:
                self._used_at_s = self._clock.now()
                self._connect_ahead(export)
            elif self._is_without_peer() and self._owner.may_retire(self):
                break
        self._disconnect()

    def try_retire(self) -> bool:
        """End the thread if there is nothing to do; the pusher hands out no job meanwhile."""
        with self._changed:
            if self._queue or self._to_prepare:
                return False
            self._is_closing = True
            return True

    def _answer(self, item: _Queued, outcome: PushOutcome) -> None:
        self._deliver(item.job, outcome)
        if not (isinstance(outcome, TransferError) and outcome.peer_is_lost):
            return
        # No other job for this life of the peer can succeed: tell all of them now.
        self._disconnect()
        lost = item.job.export.incarnation
        with self._changed:
            hopeless = [other for other in self._queue if other.job.export.incarnation <= lost]
            for other in hopeless:
                self._queue.remove(other)
        for other in hopeless:
            self._deliver(other.job, outcome)

    def _deliver(self, job: PushJob, outcome: PushOutcome) -> None:
        try:
            self._owner.on_done(job, outcome)
        except Exception:
            # The callback is the caller's; its defect must not stop the jobs behind this one.
            log.exception("push_callback_failed")

    def _outcome_of(self, item: _Queued) -> PushOutcome:
        job, moves = item.job, item.job.moves
        try:
            if item.is_cancelled or self._must_cancel:
                raise TransferCancelled(moves.transfer_id, 0, moves.num_blocks)
            if job.export.incarnation < self._incarnation:
                raise StaleIncarnation(self.worker_id, job.export.incarnation, self._incarnation)
            path = self._path_to(job.export)
            left_s = item.deadline_at_s - self._clock.now()
            if left_s <= 0:
                raise TransferTimeout(moves.transfer_id, 0, moves.num_blocks)
            receipt = path.sender.push(
                self._source,
                moves,
                timeout_s=left_s,
                should_stop=lambda: item.is_cancelled or self._must_cancel,
            )
            return replace(receipt, transport=path.transport)
        except TransferError as error:
            return error
        except Exception as error:
            # The one place where a defect becomes a failed transfer instead of a dead thread.
            log.exception("push_failed", worker_id=self.worker_id)
            failure = PushFailed(moves.transfer_id, repr(error))
            failure.__cause__ = error
            return failure

    def _path_to(self, export: KvExport) -> ChosenPath:
        if self._connected is not None:
            known, path = self._connected
            if known == export:
                return path
            self._disconnect()
        path = self._new_path_to(export)
        self._connected = (export, path)
        if self._logged != (export.incarnation, path.transport):
            self._logged = (export.incarnation, path.transport)
            self._log_choice(export, path)
        return path

    def _new_path_to(self, export: KvExport) -> ChosenPath:
        if self._refused is not None:
            refused, error, until_s = self._refused
            if refused == export and self._clock.now() < until_s:
                raise PathTooSlow(error.worker_id, error.problem)
            self._refused = None
        try:
            return connect_best(
                self._transport_by_name,
                export,
                sender_id=self._settings.sender_id,
                block_bytes=self._settings.block_bytes,
                measure=self._measure,
            )
        except PathTooSlow as error:
            until_s = self._clock.now() + self._settings.remeasure_after_s
            self._refused = (export, error, until_s)
            log.error("kv_path_refused", worker_id=export.worker_id, error=str(error))
            raise

    def _measure(self, sender: KvSender, export: KvExport) -> float | None:
        """See `Measure`."""
        bytes_per_s = measure_path(sender, export, self._source, self._clock)
        least = self._settings.min_bytes_per_s
        if bytes_per_s is not None and bytes_per_s < least:
            problem = f"{bytes_per_s / 1e6:.3g} MB/s by {export.transport}, not {least / 1e6:.3g}"
            raise PathTooSlow(export.worker_id, problem)
        return bytes_per_s

    def _log_choice(self, export: KvExport, path: ChosenPath) -> None:
        log.info(
            "kv_path_chosen",
            worker_id=export.worker_id,
            incarnation=export.incarnation,
            transport=path.transport,
            reason=path.reason,
            bytes_per_s=None if path.bytes_per_s is None else round(path.bytes_per_s),
            not_offered=", ".join(path.not_offered) or None,
            not_tried=", ".join(path.not_tried) or None,
        )
        self._warn_of_ways_not_offered(export, path)
        if path.lost_ways:
            log.warning(
                "kv_path_slower_than_offered",
                worker_id=export.worker_id,
                transport=path.transport,
                problem="; ".join(path.lost_ways),
                hint="KV goes a slower way than this pool offers; mend it, or leave it out of "
                "transports",
            )

    def _warn_of_ways_not_offered(self, export: KvExport, path: ChosenPath) -> None:
        """Somebody set them on one side only. Once for each pair of workers."""
        is_known = path.not_offered == self._not_offered
        self._not_offered = path.not_offered
        is_of_first_ranks = is_first_rank(export.worker_id) and is_first_rank(
            self._settings.sender_id
        )
        if is_known or not path.not_offered or not is_of_first_ranks:
            return
        names = " and ".join(path.not_offered)
        log.warning(
            "kv_transports_not_offered",
            worker_id=export.worker_id,
            transports=", ".join(path.not_offered),
            hint=f"{export.worker_id} does not offer {names}: set transports of decode workers as "
            "well (tandem up: --decode-worker.transports, or --transports for all workers)",
        )

    def _connect_ahead(self, export: KvExport) -> None:
        try:
            self._path_to(export)
        except TransferError as error:
            # Said again, to someone who can act on it, by the first job.
            log.warning("kv_prepare_failed", worker_id=self.worker_id, error=str(error))
        except Exception:
            # As in `_outcome_of`: a defect must not end the thread.
            log.exception("kv_prepare_failed", worker_id=self.worker_id)

    def _is_without_peer(self) -> bool:
        """Let go of a dead peer; True once there has been none, and no job, for a while."""
        if self._connected is not None:
            try:
                self._connected[1].sender.check()
            except TransferError:
                # Gone, or out of reach: either way the next job connects anew.
                self._disconnect()
            else:
                return False
        return self._clock.now() - self._used_at_s >= self._settings.retire_after_s

    def _disconnect(self) -> None:
        if self._connected is None:
            return
        (_, path), self._connected = self._connected, None
        try:
            path.sender.close()
        except Exception:
            # A device that has failed may refuse it. The jobs behind this one want an answer.
            log.exception("kv_disconnect_failed", worker_id=self.worker_id)
