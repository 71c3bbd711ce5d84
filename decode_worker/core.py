"""What a decode or mixed worker does next. Pure: the shell performs the actions.

A generation task is admitted (blocks allocated, KV expected), started (the router says that the
prompt is computed), arrives (every block checked) and joins the continuous batch. It asks for more
blocks before it needs them; when there are none, the one that the policy names moves to host
memory, or is given back to the router to be computed again. Blocks that a sender might still write
are quarantined, not freed. Mixed workers also compute prompts in place (decode_worker/prompts.py).
"""

from collections import deque
from typing import assert_never

from decode_worker.arrivals import Arrivals
from decode_worker.batch import Batch
from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.growth import Growth
from decode_worker.held_answers import HeldAnswers
from decode_worker.kv_swapping import KvSwapping
from decode_worker.lending import Lending
from decode_worker.preemption import Victims
from decode_worker.prefix_sharing import PrefixSharing
from decode_worker.prompts import Prompts
from decode_worker.settings import DecodeSettings
from decode_worker.telling import told, told_untold
from scheduling.block_pool import BlockPool
from scheduling.errors import TandemError
from scheduling.ids import TaskId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    AdmitPrompt,
    BlocksRefused,
    CancelTask,
    DecodeStarted,
    GrantGrowth,
    MakeRoom,
    Preempted,
    PushTo,
    ResumeGeneration,
    RoomMade,
    StartDecode,
    StartPrefill,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    WorkerLoad,
)
from scheduling.pass_timer import PassTimer, model_of
from scheduling.slots import SlotPool
from scheduling.step import ScheduledChunk, StepPlan
from scheduling.worker_events import (
    CommandArrived,
    DropSequence,
    KvArrived,
    KvRefused,
    KvSwapped,
    LoadSequence,
    PushFinished,
    QuarantineCleared,
    SendReport,
    SessionId,
    SessionLost,
    StepFailed,
    StepFinished,
    SwapOut,
    WorkerAction,
    WorkerEvent,
)


class DecodeCore:
    """Owned by the engine thread; holds no lock."""

    def __init__(self, settings: DecodeSettings, export: KvExport) -> None:
        self._settings = settings
        self.pool = BlockPool(settings.num_blocks)
        self._slots = SlotPool(settings.max_num_seqs)
        self._task_by_id: dict[TaskId, GenerationTask] = {}
        self._ready: deque[TaskId] = deque()
        self._leaving: dict[int, GenerationTask] = {}  # by slot: decode_worker/planning_ahead.py
        # In order of joining; the order of the batch.
        self._running: dict[int, GenerationTask] = {}
        self.lending = Lending(self.pool, settings.block_size, self._task_by_id)
        self._growth = Growth(self.pool, settings, self.lending)
        self.batch = Batch(self._growth, settings.max_untold_tokens)
        self.held = HeldAnswers(settings, self.pool, self._ready, self.lending, self.batch)
        # The present iteration gives running answers a token.
        self._is_decoding = False
        self._num_steps_run = 1
        self._sharing = PrefixSharing(self.pool, settings.block_size, is_on=settings.prefix_caching)
        self._arrivals = Arrivals(self.pool, self._sharing, export, self._task_by_id)
        model = model_of(settings.batching, is_needed=settings.needs_model)
        self._timer = PassTimer(model)
        self._swapping = KvSwapping(self.pool, self.lending, settings, export.block_bytes, model)
        self._prompts = Prompts(
            self.pool,
            self._slots,
            settings.block_size,
            settings.batching,
            self.lending,
            prefix_caching=settings.prefix_caching,
        )
        self._victims = Victims(settings, self.pool, self._prompts, self._swapping, self._running)

    @property
    def load(self) -> WorkerLoad:
        """How full the worker is."""
        return WorkerLoad(
            num_free_blocks=self.pool.num_free_blocks,
            num_running=len(self._running),
            num_waiting=len(self._task_by_id) - len(self._running),
            num_backlog_tokens=self._prompts.num_backlog_tokens,
            num_tasks=len(self._task_by_id),
            num_parked=self._swapping.num_parked,
            num_swap_blocks=self._swapping.num_blocks,
            num_free_swap_blocks=self._swapping.num_free_blocks,
            parked_due_in_s=self._swapping.due_in_s(self._timer.looked_at_s),
            pass_time_error=self._timer.error,
        )

    @property
    def num_tasks(self) -> int:
        """Tasks that hold or await anything here."""
        return len(self._task_by_id)

    @property
    def can_compute(self) -> bool:
        """Whether `plan` may find something; it never does where this is false."""
        return bool(self._running or self._ready or len(self._prompts))

    def handle(self, event: WorkerEvent) -> list[WorkerAction]:
        """Take in one event."""
        match event:
            case CommandArrived():
                self._timer.heard(event.at_s)
                return self._command(event)
            case SessionLost(session_id):
                lost = [t for t in self._task_by_id.values() if t.session_id == session_id]
                return [action for task in lost for action in self._end(task)]
            case StepFinished():
                return self._step_finished(event) + self._sharing.news()
            case StepFailed(message, slots):
                return self._step_failed(message, slots)
            case KvArrived(task_id, transport):
                return self._arrived(task_id, transport)
            case KvRefused(task_id, code, message):
                task = self._task_by_id.get(task_id)
                if task is None or task.stage is not Stage.ARRIVING:
                    return []
                return self._fail(task, code, message)
            case QuarantineCleared(task_id):
                task = self._task_by_id.get(task_id)
                if task is None or task.stage is not Stage.QUARANTINED:
                    return []
                return self._release(task)
            case KvSwapped():
                self._timer.disturbed()
                self._swapping.copied(event)
                return []
            case PushFinished():
                raise ValueError(f"a decode worker pushes no KV: {event}")
            case _:
                assert_never(event)

    def plan(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """The next iteration: one token for every running sequence that has room for it, and what
        the batching rule gives to prompts."""
        self._timer.look(now)
        self._prompts.steps_ran(self._num_steps_run, now)
        self._num_steps_run = 1
        actions = self._sharing.news() + self._fill_slots()
        starved = self.batch.take_in()
        for task in self.held.take_outgrown(starved):
            actions += [*self._leave_batch(task), self.held.hold_again(task)]
        if self._victims.is_one_needed(starved, len(self.batch)):
            actions += self._take_off(*self._victims.take_one(starved, now))
            # Its slot and blocks are free: others may start or grow with them, and no event would
            # call for another look.
            more, plan = self.plan(now)
            return actions + more, plan
        for task in starved:
            actions += self._growth.ask(task)
        has_decodes = is_steady = True
        prompt_chunks: tuple[ScheduledChunk, ...] = ()
        if len(self._prompts):
            more, has_decodes, prompt_chunks = self._prompts.plan(self.batch, now)
            actions += more
            for host in self.lending.take_changed():
                self.batch.watch(host)
            is_steady = not len(self._prompts) or self._prompts.is_steady
        plan = StepPlan(prompt_chunks)
        if has_decodes:
            plan = self.batch.plan(prompt_chunks, is_steady=is_steady)
        self._is_decoding = has_decodes and len(self.batch) > 0
        if self._is_decoding:
            self._prompts.last_decode_at_s = now
        self._timer.planned(plan, now)
        return actions, plan if plan.chunks or plan.counted else None

    def check_invariants(self) -> None:
        """Raise AssertionError unless blocks, slots and tasks agree."""
        self.pool.check_invariants()
        self._swapping.check_invariants()
        self._growth.check_invariants(self._task_by_id.values())
        self.batch.check_invariants()
        parked = [t for t in self._task_by_id.values() if t.stage is Stage.PARKED]
        assert len(parked) == self._swapping.num_parked
        self._prompts.check_invariants()
        self.held.check_invariants()
        assert len(self._running | self._leaving) + self._prompts.num_begun == self._slots.num_used
        held = {b for task_id in self._task_by_id for b in self.pool.blocks_of(task_id)}
        assert len(held) == self.pool.num_blocks - self.pool.num_free_blocks
        self._arrivals.check_invariants()
        for slot, task in self._running.items():
            assert (task.slot, task.stage) == (slot, Stage.RUNNING)

    def _command(self, event: CommandArrived) -> list[WorkerAction]:
        session_id, command = event.session_id, event.command
        task = self._task_by_id.get(command.task_id)
        match command:
            case AdmitGeneration():
                return self._arrivals.admit(session_id, command, event.at_s)
            case AdmitPrompt():
                return self._admit_prompt(session_id, command, event.at_s)
            case StartDecode(_, token_ids, place):
                if task is not None and task.stage is Stage.HELD:
                    return self.held.start(task, place)
                return self._arrivals.start(task, token_ids)
            case GrantGrowth(_, num_blocks):
                if task is None or not task.is_growing:
                    return []
                actions = self._growth.promised(task, num_blocks)
                self.batch.watch(task)
                return actions
            case ResumeGeneration(_, num_blocks):
                if task is None or task.stage is not Stage.PARKED:
                    return []
                return self._resume(task, num_blocks)
            case MakeRoom():
                return self._make_room(session_id, command, event.at_s)
            case CancelTask(task_id):
                if task is None:
                    return [SendReport(session_id, TaskReleased(task_id))]
                return self._end(task)
            case StartPrefill() | PushTo():
                message = f"a decode worker cannot take {type(command).__name__}"
                failed = TaskFailed(command.task_id, TandemError.code, message)
                return [SendReport(session_id, failed)]
            case _:
                assert_never(command)

    def _admit_prompt(
        self, session_id: SessionId, command: AdmitPrompt, now: float
    ) -> list[WorkerAction]:
        if command.task_id not in self._task_by_id:  # a repeated command changes nothing
            task = GenerationTask.of_prompt(session_id, command, now)
            self._task_by_id[task.task_id] = task
            self._prompts.admit(task)
        return []

    def _arrived(self, task_id: TaskId, transport: str) -> list[WorkerAction]:
        task = self._task_by_id.get(task_id)
        if task is None or task.stage is not Stage.ARRIVING:
            return []
        self._ready.append(task_id)
        return self._arrivals.arrived(task, transport)

    def _fill_slots(self) -> list[WorkerAction]:
        actions: list[WorkerAction] = []
        while self._ready and self._slots.num_free:
            task = self._task_by_id[self._ready.popleft()]
            task.stage, task.slot = Stage.RUNNING, self._slots.take()
            self._running[task.slot] = task
            self.batch.join(task)
            start = task.as_start(self.pool.blocks_of(task.task_id))
            actions.append(LoadSequence(start, task.sequence.stop))
            actions += self._growth.ask_ahead(task)
        return actions

    def _step_finished(self, event: StepFinished) -> list[WorkerAction]:
        self._timer.finished(event.num_steps)
        self._num_steps_run = event.num_steps
        due = self.batch.step(event.num_steps) if self._is_decoding else []
        self._is_decoding = False
        actions, computed = self._prompts.step_finished(event)
        for task in computed:
            self._prompts.leave(task)
            task.stage = Stage.RUNNING
            self._running[task.taken_slot] = task
            self.batch.join(task)
        heard = [(self._running[output.slot], output) for output in event.outputs]
        for task, output in self.batch.turns(heard, due):
            if output is not None:
                actions.append(told(task, output))
            if task.num_tokens == task.next_full_at:
                actions += told_untold(task)
                self._sharing.filled(task)
            if output is not None and output.finish_reason is not None:
                actions += self._end(task)
            elif task.is_to_be_held:
                actions += self._leave_batch(task)
                self.held.hold(task)
            elif task.is_due:
                actions += self._look(task)
        return actions

    def _look(self, task: GenerationTask) -> list[WorkerAction]:
        """It has a number of tokens at which something may be to do."""
        task.is_due = False
        actions = self._growth.ask_ahead(task)
        if not self._growth.has_room(task):
            actions += told_untold(task)
            self.batch.halt(task)
        elif task.num_untold_tokens >= self._settings.max_untold_tokens:
            actions += told_untold(task)
        self.batch.watch(task)
        return actions

    def _step_failed(self, message: str, slots: tuple[int, ...] | None) -> list[WorkerAction]:
        if slots is None:
            decoding = self.batch.advancing if self._is_decoding else ()
            failed = [*decoding, *self._prompts.planned_tasks()]
        else:
            failed = [self._prompts.of_slot(slot) or self._running[slot] for slot in slots]
        self._is_decoding = False
        self._prompts.forget_plan()
        for task in failed:
            # Whether the KV is to blame is not known; the next try shall not share it.
            self.pool.distrust(task.task_id)
            self._swapping.distrust(task)
        return [a for t in failed for a in self._fail(t, TandemError.code, message)]

    def _make_room(self, session_id: SessionId, wish: MakeRoom, now: float) -> list[WorkerAction]:
        num_free = self.pool.num_free_blocks
        actions: list[WorkerAction] = []
        for task in self._victims.for_prompt(wish, now):
            actions += self._take_off(*self._victims.take_first([task], now))
        made = RoomMade(wish.task_id, self.pool.num_free_blocks - num_free)
        return [*actions, SendReport(session_id, made)]

    def _take_off(self, task: GenerationTask, swap_out: SwapOut | None) -> list[WorkerAction]:
        if swap_out is None:
            preempted = SendReport(task.session_id, Preempted(task.task_id))
            return [*told_untold(task), preempted, *self._end(task)]
        # The router's booking ends with the report, and with it what the task was still owed.
        task.stage = Stage.PARKED
        report = SwappedOut(task.task_id, len(swap_out.block_ids))
        actions = [swap_out, *self._leave_batch(task), *self.lending.take_reports()]
        return [*actions, SendReport(task.session_id, report), *self._room_again()]

    def _resume(self, task: GenerationTask, num_blocks: int) -> list[WorkerAction]:
        swap_in = self._swapping.bring_back(task, num_blocks)
        if swap_in is None:
            refused = BlocksRefused(task.task_id, self.pool.num_free_blocks)
            return [SendReport(task.session_id, refused)]
        task.stage = Stage.READY
        self._sharing.arrived(task)
        self._ready.append(task.task_id)
        return [swap_in, SendReport(task.session_id, DecodeStarted(task.task_id))]

    def _fail(self, task: GenerationTask, code: str, message: str) -> list[WorkerAction]:
        failed = SendReport(task.session_id, TaskFailed(task.task_id, code, message))
        return [failed, *self._end(task)]

    def _end(self, task: GenerationTask) -> list[WorkerAction]:
        if task.stage is Stage.QUARANTINED or task.task_id not in self._task_by_id:
            return []
        if task.stage in (Stage.ADMITTED, Stage.ARRIVING):
            return self._arrivals.end(task)
        actions: list[WorkerAction] = []
        if task.stage is Stage.READY and task.task_id in self._ready:
            self._ready.remove(task.task_id)
        elif task.stage is Stage.PROMPT:
            self._prompts.leave(task)
        self.held.leave(task)
        return actions + self._leave_batch(task) + self._release(task)

    def _leave_batch(self, task: GenerationTask) -> list[WorkerAction]:
        slot, task.slot = task.slot, None
        self._growth.forget(task)
        if slot is None:
            return []
        actions = told_untold(task)
        self.batch.leave(task, slot)
        self._running.pop(slot, None)  # a prompt has a slot and does not run yet
        self._slots.give_back(slot)
        return [*actions, DropSequence(slot)]

    def _room_again(self) -> list[WorkerAction]:
        actions, changed = self._growth.room_again()
        for task in changed:
            self.batch.watch(task)
        return actions

    def _release(self, task: GenerationTask) -> list[WorkerAction]:
        self.lending.release(task)
        self._swapping.forget(task)
        del self._task_by_id[task.task_id]
        released = SendReport(task.session_id, TaskReleased(task.task_id))
        return [*self.lending.take_reports(), released, *self._room_again()]
