"""The prefill side's hand on the KV transfer: orders copies, keeps back what has no room yet."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvtransfer.errors import BacklogFull, TransferError
from kvtransfer.lane import PushJob, PushOutcome
from kvtransfer.protocol import BlockMoves
from kvtransfer.pusher import Pusher
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


@dataclass(frozen=True, slots=True)
class _TaskPush(PushJob):
    """A push that remembers whose it is."""

    task_id: TaskId


class KvPush:
    """Used by the engine thread; outcomes come on the pusher's threads and go to `post`."""

    def __init__(self, post: Callable[[WorkerEvent], None], push_timeout_s: float) -> None:
        self._post = post
        self._push_timeout_s = push_timeout_s
        self._pusher: Pusher | None = None
        # Ordered by the core while the peer's queue was full; per peer, so that a slow one holds
        # up no other. Bounded by the worker's own blocks: each push holds at least one.
        self._held_back: dict[WorkerId, deque[Push]] = {}

    def attach(self, pusher: Pusher) -> None:
        """The pusher is made with `on_done` as its callback, hence after this object."""
        self._pusher = pusher

    def prepare_peer(self, export: KvExport) -> None:
        """Map a decode worker's pool ahead of the first push; from any thread, returns at once."""
        assert self._pusher is not None
        try:
            self._pusher.prepare(export)
        except TransferError as error:
            # An old life announced late, or this worker is leaving; a push would say it again.
            log.info("peer_not_prepared", worker_id=export.worker_id, error=str(error))

    @property
    def is_polling(self) -> bool:
        """Held-back copies are tried again at the next look."""
        return bool(self._held_back)

    def perform(self, action: KvAction) -> None:
        """Queue or cancel copies."""
        assert self._pusher is not None
        match action:
            case Push():
                peer = action.target.export.worker_id
                if peer in self._held_back or not self._submit(action):
                    self._held_back.setdefault(peer, deque()).append(action)
            case CancelPush(task_id, transfer_id):
                self._pusher.cancel(transfer_id)
                self._give_up(task_id)
            case ExpectKv() | AwaitKv() | RevokeKv() | SwapOut() | SwapIn():
                raise ValueError(f"a prefill worker receives no KV: {action}")

    def poll(self) -> list[WorkerEvent]:
        """Submit what was held back, as far as there is room. Outcomes come by `post`."""
        for peer, waiting in list(self._held_back.items()):
            while waiting and self._submit(waiting[0]):
                waiting.popleft()
            if not waiting:
                del self._held_back[peer]
        return []

    def on_done(self, job: PushJob, outcome: PushOutcome) -> None:
        """A copy ended; called on a pusher thread."""
        assert isinstance(job, _TaskPush)
        task_id = job.task_id
        if isinstance(outcome, TransferError):
            log.warning("kv_push_failed", task_id=task_id, code=outcome.code, error=str(outcome))
            self._post(PushFinished(task_id, 0, 0, 0.0, str(outcome)))
        else:
            self._post(
                PushFinished(
                    task_id,
                    outcome.num_blocks,
                    outcome.num_bytes,
                    outcome.elapsed_s,
                    transport=outcome.transport,
                )
            )

    def _give_up(self, task_id: TaskId) -> None:
        for peer, waiting in list(self._held_back.items()):
            kept = deque(push for push in waiting if push.task_id != task_id)
            for _ in range(len(waiting) - len(kept)):
                self._post(PushFinished(task_id, 0, 0, 0.0, "cancelled"))
            if kept:
                self._held_back[peer] = kept
            else:
                del self._held_back[peer]

    def _submit(self, push: Push) -> bool:
        assert self._pusher is not None
        target = push.target
        end = push.first_index + len(push.block_ids)
        moves = BlockMoves(
            transfer_id=target.transfer_id,
            src_block_ids=push.block_ids,
            dst_block_ids=target.block_ids[push.first_index : end],
            generations=target.generations[push.first_index : end],
            first_index=push.first_index,
        )
        job = _TaskPush(target.export, moves, self._push_timeout_s, push.task_id)
        try:
            self._pusher.submit(job)
        except BacklogFull:
            return False
        except TransferError as error:
            self._post(PushFinished(push.task_id, 0, 0, 0.0, str(error)))
        return True
