"""The prefill side's hand on the KV transfer: orders copies, keeps back what has no room yet."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvtransfer.errors import BacklogFull, TransferCancelled, TransferError
from kvtransfer.lane import PushJob, PushOutcome
from kvtransfer.protocol import BlockMoves, PushReceipt
from kvtransfer.pusher import Pusher
from kvtransfer.slices import WHOLE, PoolSlices, routes_to
from runtime.logging import get_logger
from scheduling.ids import TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    ExpectKv,
    KvAction,
    Push,
    PushFinished,
    RevokeKv,
    SwapIn,
    SwapOut,
    WorkerEvent,
)

log = get_logger()


class _OpenPush:
    """One order of the core: as many jobs as ranks of the peer have slices of ours."""

    def __init__(self, push: Push, num_jobs: int) -> None:
        self.task_id = push.task_id
        self._num_blocks = len(push.block_ids)
        # Its jobs end on the threads of several lanes.
        self._lock = threading.Lock()
        self._num_open = num_jobs
        self._num_bytes = 0
        self._slowest: PushReceipt | None = None
        self.error: TransferError | None = None

    def end(self, outcome: PushOutcome) -> tuple[bool, PushFinished | None]:
        """One job ended. True with the first that failed; with the last what all came to."""
        with self._lock:
            self._num_open -= 1
            is_first_error = isinstance(outcome, TransferError) and self.error is None
            if isinstance(outcome, TransferError):
                self.error = self.error or outcome
            else:
                self._num_bytes += outcome.num_bytes
                if self._slowest is None or outcome.elapsed_s > self._slowest.elapsed_s:
                    self._slowest = outcome
            return is_first_error, None if self._num_open else self._finished()

    def _finished(self) -> PushFinished:
        if self.error is not None:
            return PushFinished(self.task_id, 0, 0, 0.0, str(self.error))
        slowest = self._slowest
        assert slowest is not None, "a push has a job at least"
        return PushFinished(
            self.task_id,
            self._num_blocks,
            self._num_bytes,
            slowest.elapsed_s,
            transport=slowest.transport,
        )


@dataclass(frozen=True, slots=True)
class _RankPush(PushJob):
    """What of a push goes to one rank of the peer."""

    push: _OpenPush


class KvPush:
    """Used by the engine thread; outcomes come on the pusher's threads and go to `post`."""

    def __init__(
        self,
        post: Callable[[WorkerEvent], None],
        push_timeout_s: float,
        slices: PoolSlices = WHOLE,
    ) -> None:
        """`slices`: what the pool that is pushed from holds of every block."""
        self._post = post
        self._push_timeout_s = push_timeout_s
        self._slices = slices
        self._pusher: Pusher | None = None
        # Ordered by the core while the queue of a rank of the peer was full; per rank, so that a
        # slow one holds up no other. Bounded by the worker's own blocks: each push holds at least
        # one, and is one job for each rank.
        self._held_back: dict[WorkerId, deque[_RankPush]] = {}

    def attach(self, pusher: Pusher) -> None:
        """The pusher is made with `on_done` as its callback, hence after this object."""
        self._pusher = pusher

    def prepare_peer(self, export: KvExport) -> None:
        """Map a decode worker's pool ahead of the first push; from any thread, returns at once."""
        assert self._pusher is not None
        try:
            for route in routes_to(export, self._slices):
                self._pusher.prepare(route.export)
        except TransferError as error:
            # An old life announced late, one that cuts blocks otherwise, or this worker is leaving;
            # a push would say it again.
            log.info("peer_not_prepared", worker_id=export.worker_id, error=str(error))

    @property
    def is_polling(self) -> bool:
        """Held-back copies are tried again at the next look."""
        return bool(self._held_back)

    def perform(self, action: KvAction) -> None:
        """Queue or cancel copies."""
        match action:
            case Push():
                self._begin(action)
            case CancelPush(task_id, transfer_id):
                self._cancel(transfer_id)
                self._give_up(task_id)
            case ExpectKv() | AwaitKv() | RevokeKv() | SwapOut() | SwapIn():
                raise ValueError(f"a prefill worker receives no KV: {action}")

    def poll(self) -> list[WorkerEvent]:
        """Submit what was held back, as far as there is room. Outcomes come by `post`."""
        for rank, waiting in list(self._held_back.items()):
            while waiting and self._submit(waiting[0]):
                waiting.popleft()
            if not waiting:
                del self._held_back[rank]
        return []

    def on_done(self, job: PushJob, outcome: PushOutcome) -> None:
        """A copy ended; called on a pusher thread."""
        assert isinstance(job, _RankPush)
        is_first_error, finished = job.push.end(outcome)
        if is_first_error:
            error, task_id = job.push.error, job.push.task_id
            assert error is not None
            log.warning("kv_push_failed", task_id=task_id, code=error.code, error=str(error))
        if finished is not None:
            self._post(finished)
        elif is_first_error:
            # What the others bring is of no use any more.
            self._cancel(job.moves.transfer_id)

    def _begin(self, push: Push) -> None:
        target = push.target
        end = push.first_index + len(push.block_ids)
        moves = BlockMoves(
            transfer_id=target.transfer_id,
            src_block_ids=push.block_ids,
            dst_block_ids=target.block_ids[push.first_index : end],
            generations=target.generations[push.first_index : end],
            first_index=push.first_index,
        )
        try:
            routes = routes_to(target.export, self._slices)
        except TransferError as error:
            log.warning("kv_push_failed", task_id=push.task_id, code=error.code, error=str(error))
            self._post(PushFinished(push.task_id, 0, 0, 0.0, str(error)))
            return
        opened = _OpenPush(push, len(routes))
        for route in routes:
            job = _RankPush(route.export, route.cut(moves), self._push_timeout_s, opened)
            rank = job.export.worker_id
            if rank in self._held_back or not self._submit(job):
                self._held_back.setdefault(rank, deque()).append(job)

    def _cancel(self, transfer_id: str) -> None:
        assert self._pusher is not None
        self._pusher.cancel(transfer_id)

    def _give_up(self, task_id: TaskId) -> None:
        for rank, waiting in list(self._held_back.items()):
            kept = deque(job for job in waiting if job.push.task_id != task_id)
            for job in waiting:
                if job.push.task_id == task_id:
                    self._end_unsent(job)
            if kept:
                self._held_back[rank] = kept
            else:
                del self._held_back[rank]

    def _submit(self, job: _RankPush) -> bool:
        """False where the queue is full; else the job is answered, now or later."""
        assert self._pusher is not None
        if job.push.error is not None:
            self._end_unsent(job)
            return True
        try:
            self._pusher.submit(job)
        except BacklogFull:
            return False
        except TransferError as error:
            self.on_done(job, error)
        return True

    def _end_unsent(self, job: _RankPush) -> None:
        moves = job.moves
        self.on_done(job, TransferCancelled(moves.transfer_id, 0, moves.num_blocks))
