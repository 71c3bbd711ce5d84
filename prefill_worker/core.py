"""What a prefill worker does next. Pure: the shell performs the actions.

Prompts run in the order in which the router sent them, cut into chunks that fill the iteration's
token budget; at most one prompt is left partly computed. Full blocks are pushed as soon as they
are computed and a target is known. A task's blocks are free only when no copy reads them any more.
"""

from collections import deque
from dataclasses import dataclass
from typing import assert_never

from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.errors import TandemError
from scheduling.ids import TaskId
from scheduling.messages import (
    AdmitGeneration,
    CancelTask,
    Command,
    GrantGrowth,
    KvPushed,
    KvTarget,
    PrefillStarted,
    PushTo,
    Report,
    SequenceSpec,
    StartDecode,
    StartPrefill,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
    WorkerLoad,
)
from scheduling.slots import SlotPool
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from scheduling.worker_events import (
    CancelPush,
    CommandArrived,
    DropSequence,
    KvArrived,
    KvRefused,
    LoadSequence,
    Push,
    PushFinished,
    QuarantineCleared,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFailed,
    StepFinished,
    WorkerAction,
    WorkerEvent,
)


@dataclass(frozen=True, slots=True)
class PrefillSettings:
    """Limits of one prefill worker."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    # Tokens computed in one iteration.
    max_num_batched_tokens: int


@dataclass(slots=True)
class PromptTask:
    """One prompt from dispatch until its last block has left."""

    task_id: TaskId
    session_id: SessionId
    sequence: SequenceSpec
    num_computed_tokens: int = 0
    # Held while the prompt is being computed; None before and after.
    slot: int | None = None
    target: KvTarget | None = None
    # Blocks [0, num_submitted_blocks) have been handed to the transfer.
    num_submitted_blocks: int = 0
    num_pushed_blocks: int = 0
    num_pushed_bytes: int = 0
    copy_s: float = 0.0
    num_pushes_in_flight: int = 0
    # Cancelled, failed or finished: released as soon as no copy reads its blocks.
    is_ending: bool = False

    @property
    def is_computed(self) -> bool:
        """All KV of the sequence exists."""
        return self.num_computed_tokens == self.sequence.num_tokens


class PrefillCore:
    """Owned by the engine thread; holds no lock."""

    def __init__(self, settings: PrefillSettings) -> None:
        self._settings = settings
        self.pool = BlockPool(settings.num_blocks)
        self._slots = SlotPool(settings.max_num_seqs)
        self._task_by_id: dict[TaskId, PromptTask] = {}
        # Sent by the router, no block yet.
        self._waiting: deque[TaskId] = deque()
        # Holding a slot and blocks, in order of start.
        self._running: dict[TaskId, PromptTask] = {}
        self._task_by_slot: dict[int, PromptTask] = {}
        self._planned: tuple[ScheduledChunk, ...] = ()
        # Kept as a sum: the load goes out with every frame.
        self._num_backlog_tokens = 0

    @property
    def load(self) -> WorkerLoad:
        """How full the worker is."""
        return WorkerLoad(
            num_free_blocks=self.pool.num_free_blocks,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_backlog_tokens=self._num_backlog_tokens,
        )

    @property
    def num_tasks(self) -> int:
        """Tasks that hold or await anything here."""
        return len(self._task_by_id)

    def handle(self, event: WorkerEvent) -> list[WorkerAction]:
        """Take in one event."""
        match event:
            case CommandArrived(session_id, command):
                return self._command(session_id, command)
            case SessionLost(session_id):
                lost = [t for t in self._task_by_id.values() if t.session_id == session_id]
                return [action for task in lost for action in self._end(task)]
            case StepFinished(outputs):
                return self._step_finished(outputs)
            case StepFailed(message, slots):
                return self._step_failed(message, slots)
            case PushFinished():
                return self._push_finished(event)
            case KvArrived() | KvRefused() | QuarantineCleared():
                raise ValueError(f"a prefill worker receives no KV: {event}")
            case _:
                assert_never(event)

    def plan(self) -> tuple[list[WorkerAction], StepPlan | None]:
        """The next iteration, or None when there is nothing to compute."""
        budget = self._settings.max_num_batched_tokens
        chunks: list[ScheduledChunk] = []
        actions: list[WorkerAction] = []
        for task in self._running.values():
            budget -= self._schedule(task, budget, chunks)
        while self._waiting and budget > 0:
            task = self._task_by_id[self._waiting[0]]
            started = self._start(task)
            if started is None:
                break
            actions += started
            self._waiting.popleft()
            budget -= self._schedule(task, budget, chunks)
        self._planned = tuple(chunks)
        return actions, StepPlan(self._planned) if chunks else None

    def check_invariants(self) -> None:
        """Raise AssertionError unless blocks, slots and tasks agree."""
        self.pool.check_invariants()
        assert set(self._running) <= set(self._task_by_id)
        assert sum(self.pool.num_blocks_of(task_id) for task_id in self._task_by_id) == (
            self.pool.num_blocks - self.pool.num_free_blocks
        )
        assert len(self._task_by_slot) == self._slots.num_used
        assert self._num_backlog_tokens == sum(
            task.sequence.num_tokens - task.num_computed_tokens
            for task in self._task_by_id.values()
            if not task.is_ending
        )

    def _command(self, session_id: SessionId, command: Command) -> list[WorkerAction]:
        task = self._task_by_id.get(command.task_id)
        match command:
            case StartPrefill(task_id, sequence):
                if task is not None:
                    return []  # a repeated dispatch changes nothing
                task = PromptTask(task_id, session_id, sequence)
                self._task_by_id[task_id] = task
                self._waiting.append(task_id)
                self._num_backlog_tokens += sequence.num_tokens
                return []
            case PushTo(_, target):
                if task is None or task.is_ending or task.target is not None:
                    return []
                task.target = target
                return self._push_ready(task)
            case CancelTask(task_id):
                if task is None:
                    return [SendReport(session_id, TaskReleased(task_id))]
                return self._end(task)
            case AdmitGeneration() | StartDecode() | GrantGrowth():
                message = f"a prefill worker cannot take {type(command).__name__}"
                failed = TaskFailed(command.task_id, TandemError.code, message)
                return [SendReport(session_id, failed)]
            case _:
                assert_never(command)

    def _start(self, task: PromptTask) -> list[WorkerAction] | None:
        num_blocks = num_blocks_for(task.sequence.num_tokens, self._settings.block_size)
        if not self._slots.num_free or num_blocks > self.pool.num_free_blocks:
            return None
        block_table = self.pool.allocate(task.task_id, num_blocks)
        assert block_table is not None
        task.slot = self._slots.take()
        self._running[task.task_id] = task
        self._task_by_slot[task.slot] = task
        sequence = task.sequence
        start = SequenceStart(
            slot=task.slot,
            token_ids=sequence.prompt_token_ids + sequence.output_token_ids,
            num_prompt_tokens=len(sequence.prompt_token_ids),
            sampling=sequence.sampling,
            block_table=block_table,
        )
        return [
            LoadSequence(start, sequence.stop),
            SendReport(task.session_id, PrefillStarted(task.task_id)),
        ]

    def _schedule(self, task: PromptTask, budget: int, chunks: list[ScheduledChunk]) -> int:
        missing = task.sequence.num_tokens - task.num_computed_tokens
        num_tokens = min(missing, budget)
        if num_tokens > 0:
            assert task.slot is not None
            chunk = ScheduledChunk(
                task.slot, task.num_computed_tokens, num_tokens, samples=num_tokens == missing
            )
            chunks.append(chunk)
        return max(0, num_tokens)

    def _step_finished(self, outputs: tuple[SampledOutput, ...]) -> list[WorkerAction]:
        actions: list[WorkerAction] = []
        output_by_slot = {output.slot: output for output in outputs}
        for chunk in self._planned:
            task = self._task_by_slot[chunk.slot]
            task.num_computed_tokens += chunk.num_tokens
            self._num_backlog_tokens -= chunk.num_tokens
            actions += self._push_ready(task)
            if chunk.samples:
                actions += self._first_token(task, output_by_slot[chunk.slot])
        self._planned = ()
        return actions

    def _first_token(self, task: PromptTask, output: SampledOutput) -> list[WorkerAction]:
        emitted = TokensEmitted(
            task_id=task.task_id,
            first_token_index=len(task.sequence.output_token_ids),
            token_ids=(output.token_id,),
            text=output.text,
            logprobs=() if output.logprobs is None else (output.logprobs,),
            finish_reason=output.finish_reason,
            matched_stop=output.matched_stop,
        )
        actions: list[WorkerAction] = [SendReport(task.session_id, emitted)]
        if output.finish_reason is not None:
            return actions + self._end(task)
        return actions + self._leave_engine(task) + self._finish_if_pushed(task)

    def _push_ready(self, task: PromptTask) -> list[WorkerAction]:
        if task.target is None or task.is_ending:
            return []
        if task.is_computed:
            # The last block may be partly filled; it is complete for this hand-over.
            num_ready = len(task.target.block_ids)
        else:
            num_ready = task.num_computed_tokens // self._settings.block_size
        num_ready = min(num_ready, len(task.target.block_ids))
        if num_ready <= task.num_submitted_blocks:
            return []
        blocks = self.pool.blocks_of(task.task_id)[task.num_submitted_blocks : num_ready]
        push = Push(task.task_id, task.target, task.num_submitted_blocks, blocks)
        task.num_submitted_blocks = num_ready
        task.num_pushes_in_flight += 1
        return [push]

    def _push_finished(self, event: PushFinished) -> list[WorkerAction]:
        task = self._task_by_id.get(event.task_id)
        assert task is not None, "a task is kept until its last copy has ended"
        task.num_pushes_in_flight -= 1
        if task.is_ending:
            return self._release_if_idle(task)
        if event.error is not None:
            return self._fail(task, "transfer_failed", event.error)
        task.num_pushed_blocks += event.num_blocks
        task.num_pushed_bytes += event.num_bytes
        task.copy_s += event.copy_s
        return self._finish_if_pushed(task)

    def _finish_if_pushed(self, task: PromptTask) -> list[WorkerAction]:
        target = task.target
        if target is None or not task.is_computed or task.slot is not None:
            return []
        if task.num_pushed_blocks < len(target.block_ids):
            return []
        pushed = KvPushed(
            task_id=task.task_id,
            num_blocks=task.num_pushed_blocks,
            num_bytes=task.num_pushed_bytes,
            copy_s=task.copy_s,
            transport=target.export.transport,
        )
        return [SendReport(task.session_id, pushed), *self._end(task)]

    def _step_failed(self, message: str, slots: tuple[int, ...] | None) -> list[WorkerAction]:
        if slots is None:
            slots = tuple(chunk.slot for chunk in self._planned)
        tasks = [self._task_by_slot[slot] for slot in slots]
        self._planned = ()
        return [a for task in tasks for a in self._fail(task, TandemError.code, message)]

    def _fail(self, task: PromptTask, code: str, message: str) -> list[WorkerAction]:
        report: Report = TaskFailed(task.task_id, code, message)
        return [SendReport(task.session_id, report), *self._end(task)]

    def _end(self, task: PromptTask) -> list[WorkerAction]:
        if task.is_ending:
            return []
        task.is_ending = True
        self._num_backlog_tokens -= task.sequence.num_tokens - task.num_computed_tokens
        actions = self._leave_engine(task)
        if not self._running.get(task.task_id) and task.task_id in self._waiting:
            self._waiting.remove(task.task_id)
        if task.num_pushes_in_flight:
            assert task.target is not None
            actions.append(CancelPush(task.task_id, task.target.transfer_id))
        return actions + self._release_if_idle(task)

    def _leave_engine(self, task: PromptTask) -> list[WorkerAction]:
        if task.slot is None:
            return []
        slot, task.slot = task.slot, None
        del self._task_by_slot[slot]
        del self._running[task.task_id]
        self._slots.give_back(slot)
        return [DropSequence(slot)]

    def _release_if_idle(self, task: PromptTask) -> list[WorkerAction]:
        if task.num_pushes_in_flight:
            return []
        self.pool.release(task.task_id)
        del self._task_by_id[task.task_id]
        return [SendReport(task.session_id, TaskReleased(task.task_id))]
