"""What a prefill worker does next. Pure: the shell performs the actions.

Prompts run in the order in which the router sent them, cut into chunks that fill the iteration's
token budget; at most one prompt is left partly computed. What is cached of a prompt is shared; what
another prompt computes right now is waited for, and who waits may be passed. When blocks go to a
known target: `prefill_worker/pushing.py`. A task lets go of its blocks only when no copy reads them
any more.
"""

import math
from dataclasses import dataclass
from typing import assert_never

from prefill_worker.prompt_task import PromptTask
from prefill_worker.pushing import BesidePass, Pushing
from scheduling.batch_time import shape_of
from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.errors import TandemError
from scheduling.ids import BlockId, TaskId
from scheduling.kv_export import KvTarget
from scheduling.messages import (
    AdmitGeneration,
    AdmitPrompt,
    CancelTask,
    Command,
    GrantGrowth,
    KvPushed,
    MakeRoom,
    PrefillStarted,
    PromptScored,
    PushTo,
    Report,
    ResumeGeneration,
    StartDecode,
    StartPrefill,
    TaskFailed,
    TaskReleased,
    WorkerLoad,
)
from scheduling.pass_timer import PassTimer, model_of
from scheduling.prefix_reuse import PrefixReuse
from scheduling.push_pacing import KvOverlap
from scheduling.slots import SlotPool
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from scheduling.worker_events import (
    CancelPush,
    CommandArrived,
    DropSequence,
    KvArrived,
    KvRefused,
    KvSwapped,
    LoadSequence,
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
    # Keep the KV of full blocks for later prompts that begin alike.
    prefix_caching: bool = True
    # Passes are timed, a model of them is learnt, and how far off it is goes with the load.
    is_learning: bool = False
    # `AUTO` learns too, and keeps that to itself.
    kv_overlap: KvOverlap = KvOverlap.CHUNK
    # Pushes take their time from the passes.
    are_cores_shared: bool = False
    # `AUTO` lets no push become longer for what it gains.
    max_push_s: float = math.inf


class PrefillCore:
    """Owned by the engine thread; holds no lock."""

    def __init__(self, settings: PrefillSettings) -> None:
        self._settings = settings
        self.pool = BlockPool(settings.num_blocks)
        self._slots = SlotPool(settings.max_num_seqs)
        self._task_by_id: dict[TaskId, PromptTask] = {}
        # Sent by the router, no block yet.
        self._waiting: dict[TaskId, PromptTask] = {}
        # Holding a slot and blocks, in order of start.
        self._running: dict[TaskId, PromptTask] = {}
        self._task_by_slot: dict[int, PromptTask] = {}
        self._planned: tuple[ScheduledChunk, ...] = ()
        self._prefixes = PrefixReuse(self.pool, settings.block_size, is_on=settings.prefix_caching)
        is_learning = settings.is_learning or settings.kv_overlap is KvOverlap.AUTO
        self._timer = PassTimer(model_of(None, is_needed=is_learning))
        self._pushing = Pushing(
            self.pool,
            settings.block_size,
            settings.kv_overlap,
            are_cores_shared=settings.are_cores_shared,
            max_push_s=settings.max_push_s,
        )
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
            num_tasks=len(self._task_by_id),
            pass_time_error=self._timer.error if self._settings.is_learning else None,
        )

    @property
    def num_tasks(self) -> int:
        """Tasks that hold or await anything here."""
        return len(self._task_by_id)

    @property
    def can_compute(self) -> bool:
        """Whether `plan` may find something; it never does where this is false."""
        return bool(self._running or self._waiting)

    def handle(self, event: WorkerEvent) -> list[WorkerAction]:
        """Take in one event."""
        match event:
            case CommandArrived(session_id, command):
                return self._command(session_id, command)
            case SessionLost(session_id):
                lost = [t for t in self._task_by_id.values() if t.session_id == session_id]
                return [action for task in lost for action in self._end(task)]
            case StepFinished():
                return self._step_finished(event) + self._prefixes.news()
            case StepFailed(message, slots):
                return self._step_failed(message, slots)
            case PushFinished():
                return self._push_finished(event)
            case KvArrived() | KvRefused() | QuarantineCleared() | KvSwapped():
                raise ValueError(f"a prefill worker receives no KV and swaps none: {event}")
            case _:
                assert_never(event)

    def plan(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """The next iteration, or None when there is nothing to compute."""
        self._timer.look(now)
        budget = self._settings.max_num_batched_tokens
        chunks: list[ScheduledChunk] = []
        actions: list[WorkerAction] = []
        for task in self._running.values():
            budget -= self._schedule(task, budget, chunks)
        if budget > 0:
            actions += self._start_waiting(budget, chunks)
        if chunks and self._settings.kv_overlap is KvOverlap.AUTO:
            actions += self._pace(chunks, now)
        self._planned = tuple(chunks)
        actions += self._prefixes.news()
        if not chunks:
            return actions, None
        plan = StepPlan(self._planned)
        self._timer.planned(plan, now)
        return actions, plan

    def check_invariants(self) -> None:
        """Raise AssertionError unless blocks, slots and tasks agree."""
        self.pool.check_invariants()
        assert set(self._running) <= set(self._task_by_id)
        held = {b for task_id in self._task_by_id for b in self.pool.blocks_of(task_id)}
        assert len(held) == self.pool.num_blocks - self.pool.num_free_blocks
        assert self._running or not self._prefixes.num_in_work, (
            "somebody waits for a prompt that is gone"
        )
        assert len(self._task_by_slot) == self._slots.num_used
        assert self._num_backlog_tokens == sum(
            task.num_missing_tokens for task in self._task_by_id.values() if not task.is_ending
        )

    def _command(self, session_id: SessionId, command: Command) -> list[WorkerAction]:
        task = self._task_by_id.get(command.task_id)
        match command:
            case StartPrefill(task_id, sequence):
                if task is not None:
                    return []  # a repeated dispatch changes nothing
                task = PromptTask(task_id, session_id, sequence, self._prefixes.chain_of(sequence))
                self._task_by_id[task_id] = self._waiting[task_id] = task
                self._num_backlog_tokens += sequence.num_tokens
                return []
            case PushTo(_, target):
                if task is None or task.is_ending or task.target is not None:
                    return []
                if not self._is_target_of(target, task):
                    message = "the target's blocks are not those of the sequence; see the versions"
                    return self._fail(task, "transfer_failed", message)
                task.target = target
                return self._pushing.at_once(task) + self._finish_if_pushed(task)
            case CancelTask(task_id):
                if task is None:
                    return [SendReport(session_id, TaskReleased(task_id))]
                return self._end(task)
            case (
                AdmitGeneration()
                | AdmitPrompt()
                | StartDecode()
                | GrantGrowth()
                | ResumeGeneration()
                | MakeRoom()
            ):
                message = f"a prefill worker cannot take {type(command).__name__}"
                failed = TaskFailed(command.task_id, TandemError.code, message)
                return [SendReport(session_id, failed)]
            case _:
                assert_never(command)

    def _is_target_of(self, target: KvTarget, task: PromptTask) -> bool:
        num_blocks = num_blocks_for(task.sequence.num_tokens, self._settings.block_size)
        return target.first_block_index + len(target.block_ids) <= num_blocks

    def _start_waiting(self, budget: int, chunks: list[ScheduledChunk]) -> list[WorkerAction]:
        actions: list[WorkerAction] = []
        for task in tuple(self._waiting.values()):
            if budget <= 0 or not self._slots.num_free:
                break
            shared = self._prefixes.find(task)
            if shared is None:
                continue
            started = self._start(task, shared)
            if started is None:
                break
            actions += started
            del self._waiting[task.task_id]
            budget -= self._schedule(task, budget, chunks)
        return actions

    def _start(self, task: PromptTask, shared: tuple[BlockId, ...]) -> list[WorkerAction] | None:
        block_size = self._settings.block_size
        num_blocks = num_blocks_for(task.sequence.num_tokens, block_size)
        if self.pool.allocate(task.task_id, num_blocks - len(shared), shared) is None:
            return None
        task.num_computed_tokens = len(shared) * block_size
        self._num_backlog_tokens -= task.num_computed_tokens
        task.slot = self._slots.take()
        self._running[task.task_id] = task
        self._task_by_slot[task.slot] = task
        self._prefixes.begin(task)
        sequence = task.sequence
        start = SequenceStart(
            slot=task.slot,
            token_ids=sequence.prompt_token_ids + sequence.output_token_ids,
            num_prompt_tokens=len(sequence.prompt_token_ids),
            sampling=sequence.sampling,
            block_table=self.pool.blocks_of(task.task_id),
        )
        return [
            LoadSequence(start, sequence.stop),
            SendReport(task.session_id, PrefillStarted(task.task_id, task.num_computed_tokens)),
            *self._pushing.at_once(task),
        ]

    def _schedule(self, task: PromptTask, budget: int, chunks: list[ScheduledChunk]) -> int:
        missing = task.num_missing_tokens
        num_tokens = min(missing, budget)
        if num_tokens > 0:
            assert task.slot is not None
            chunk = ScheduledChunk(
                task.slot, task.num_computed_tokens, num_tokens, samples=num_tokens == missing
            )
            chunks.append(chunk)
        return max(0, num_tokens)

    def _pace(self, chunks: list[ScheduledChunk], now: float) -> list[WorkerAction]:
        """Push what is worth it beside the pass, which may hold less for the sake of that."""
        model, budget = self._timer.model, self._settings.max_num_batched_tokens
        assert model is not None, "whoever paces learns what passes take"
        if len(chunks) == 1 and not self._waiting:
            # Nobody else would use the room, and nobody waits for a longer way to the end.
            task = self._task_by_slot[chunks[0].slot]
            chunks[0] = self._pushing.cut(task, chunks[0], model, now)
        pass_s = model.seconds(shape_of(chunks))
        pushes: list[WorkerAction] = []
        for chunk in chunks:
            task = self._task_by_slot[chunk.slot]
            pushes += self._pushing.beside(task, BesidePass(chunk, pass_s, budget, now), model)
        return pushes

    def _step_finished(self, event: StepFinished) -> list[WorkerAction]:
        self._timer.finished()
        actions: list[WorkerAction] = []
        for slot, logprobs in event.prompt_logprobs:
            task = self._task_by_slot[slot]
            actions.append(SendReport(task.session_id, PromptScored(task.task_id, logprobs)))
        output_by_slot = {output.slot: output for output in event.outputs}
        for chunk in self._planned:
            task = self._task_by_slot[chunk.slot]
            self._prefixes.computed(task, chunk.num_tokens)
            task.num_computed_tokens += chunk.num_tokens
            self._num_backlog_tokens -= chunk.num_tokens
            if chunk.samples:
                actions += self._first_token(task, output_by_slot[chunk.slot])
            else:
                actions += self._pushing.at_once(task)
        self._planned = ()
        return actions

    def _first_token(self, task: PromptTask, output: SampledOutput) -> list[WorkerAction]:
        emitted = output.as_report(task.task_id, len(task.sequence.output_token_ids))
        actions: list[WorkerAction] = [SendReport(task.session_id, emitted)]
        if output.finish_reason is not None:
            return actions + self._end(task)  # nobody goes on with its KV
        actions += self._pushing.at_once(task)
        return actions + self._leave_engine(task) + self._finish_if_pushed(task)

    def _push_finished(self, event: PushFinished) -> list[WorkerAction]:
        task = self._task_by_id.get(event.task_id)
        assert task is not None, "a task is kept until its last copy has ended"
        self._pushing.ended(task, event)
        if task.is_ending:
            return self._release_if_idle(task)
        if event.error is not None:
            return self._fail(task, "transfer_failed", event.error)
        task.num_pushed_blocks += event.num_blocks
        task.num_pushed_bytes += event.num_bytes
        task.copy_s += event.copy_s
        task.transport = event.transport
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
            transport=task.transport or target.export.transport,
        )
        return [SendReport(task.session_id, pushed), *self._end(task)]

    def _step_failed(self, message: str, slots: tuple[int, ...] | None) -> list[WorkerAction]:
        if slots is None:
            slots = tuple(chunk.slot for chunk in self._planned)
        tasks = [self._task_by_slot[slot] for slot in slots]
        self._planned = ()
        for task in tasks:
            # Whether the KV is to blame is not known; the next try shall not begin with it.
            self.pool.distrust(task.task_id)
        return [a for task in tasks for a in self._fail(task, TandemError.code, message)]

    def _fail(self, task: PromptTask, code: str, message: str) -> list[WorkerAction]:
        report: Report = TaskFailed(task.task_id, code, message)
        return [SendReport(task.session_id, report), *self._end(task)]

    def _end(self, task: PromptTask) -> list[WorkerAction]:
        if task.is_ending:
            return []
        task.is_ending = True
        self._num_backlog_tokens -= task.num_missing_tokens
        actions = self._leave_engine(task)
        self._waiting.pop(task.task_id, None)
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
        self._prefixes.end(task)
        return [DropSequence(slot)]

    def _release_if_idle(self, task: PromptTask) -> list[WorkerAction]:
        if task.num_pushes_in_flight:
            return []
        self.pool.release(task.task_id)
        del self._task_by_id[task.task_id]
        return [SendReport(task.session_id, TaskReleased(task.task_id))]
