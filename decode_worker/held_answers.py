"""Answers that wait for room of their own beside their prompt's KV, which was computed here (GTs).

They hold blocks and no slot. Who gets room, and when, is the router's to decide: it grants blocks
as to an answer that grows, and then says that the answer may begin. Where the settings say so, one
that outgrows its blocks while there are no others comes back here, with all of its KV.
"""

from collections import deque

from decode_worker.batch import Batch
from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.lending import Lending
from decode_worker.settings import DecodeSettings
from scheduling.block_leases import LentPlace
from scheduling.block_pool import BlockPool
from scheduling.ids import TaskId
from scheduling.messages import DecodeStarted, Preempted
from scheduling.worker_events import SendReport, WorkerAction


class HeldAnswers:
    """The part of the decode core that knows who waits for the router's word."""

    def __init__(
        self,
        settings: DecodeSettings,
        pool: BlockPool,
        ready: deque[TaskId],
        lending: Lending,
        batch: Batch,
    ) -> None:
        self._are_outgrown_held = settings.is_mixed and settings.outgrown_wait_in_line
        self._pool = pool
        # The core's own: those that wait for a slot only.
        self._ready = ready
        self._lending = lending
        self._batch = batch
        self._task_by_id: dict[TaskId, GenerationTask] = {}
        # Of their prompts: it is written, though no sequence of the engine has it.
        self.num_kv_tokens = 0

    def __len__(self) -> int:
        return len(self._task_by_id)

    def hold(self, task: GenerationTask) -> None:
        """Its prompt is computed, its first token is out, and it has left the batch."""
        task.stage, task.is_to_be_held = Stage.HELD, False
        # The router knows what it needs: nothing is asked for.
        task.is_growing = True
        self._task_by_id[task.task_id] = task
        self.num_kv_tokens += task.num_tokens - 1

    def take_outgrown(self, starved: list[GenerationTask]) -> list[GenerationTask]:
        """Of those without room for their next token, who is to wait in line again."""
        if not self._are_outgrown_held:
            return []
        outgrown = [task for task in starved if self._has_outgrown(task)]
        starved[:] = (task for task in starved if not self._has_outgrown(task))
        return outgrown

    def hold_again(self, task: GenerationTask) -> SendReport:
        """It has left the batch, and keeps what it has written."""
        self.hold(task)
        # What it is lent from now on comes behind these.
        task.num_blocks = self._pool.num_blocks_of(task.task_id)
        return SendReport(task.session_id, Preempted(task.task_id, keeps_kv=True))

    def start(self, task: GenerationTask, place: LentPlace | None) -> list[WorkerAction]:
        """The router says that it may begin, with what it has been granted or in that place."""
        if place is not None and not self._borrow(task, place):
            return [self._lending.refusal(task)]
        self.leave(task)
        task.stage = Stage.READY
        self._ready.append(task.task_id)
        if place is None:
            return []
        return [SendReport(task.session_id, DecodeStarted(task.task_id))]

    def leave(self, task: GenerationTask) -> None:
        """It begins, or it ends; harmless for one that does not wait here."""
        if self._task_by_id.pop(task.task_id, None) is not None:
            task.is_growing = False
            self.num_kv_tokens -= task.num_tokens - 1

    def check_invariants(self) -> None:
        """Raise AssertionError unless they hold no slot and the sum is theirs."""
        tasks = self._task_by_id.values()
        assert all(task.stage is Stage.HELD and task.slot is None for task in tasks)
        assert self.num_kv_tokens == sum(task.num_tokens - 1 for task in tasks)

    def _has_outgrown(self, task: GenerationTask) -> bool:
        # One that meets its guest has not outgrown anything. What came from a prefill worker never
        # stood in a line here.
        is_refused = task.is_denied and not task.num_owed_blocks
        is_of_line = not task.num_kv_blocks
        return is_refused and is_of_line and self._lending.next_lent(task) is None

    def _borrow(self, task: GenerationTask, place: LentPlace) -> bool:
        task.place = place
        if not self._lending.fits(task) or not self._lending.borrow(task):
            task.place = None
            return False
        for host in self._lending.take_changed():
            self._batch.watch(host)
        return True
