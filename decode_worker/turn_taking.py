"""A mixed worker on which answers and prompts take turns: FastServe's preemption at every token.

Before an iteration the queues of scheduling/mlfq.py say who computes. Who does not pauses: with its
KV on the device, or in host memory, which counts as room, so that routers send what both hold
together. Where KV lies is this worker's own affair; routers hear of it for their figures only.

As published, but for this: prompts longer than an iteration come in chunks; an iteration in which
nobody is left out is not planned anew; what is kept free for newcomers is bounded by a share of the
pool, and running answers do not make room for it. Copies to host memory and back are beside an
iteration in the simulator only; the engine here copies first. Beyond device and host memory
together, prompts wait at the router, in order of arrival.
"""

from dataclasses import replace

from decode_worker.core import DecodeCore
from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.settings import DecodeSettings
from decode_worker.telling import told_untold
from scheduling.block_pool import num_blocks_for
from scheduling.feedback_queues import FeedbackQueues
from scheduling.ids import TaskId
from scheduling.messages import (
    AdmitPrompt,
    BlocksRefused,
    GrantGrowth,
    KvExport,
    Preempted,
    SwappedOut,
    WorkerLoad,
)
from scheduling.mlfq import JobNeeds, KvPlace, KvRoom, MlfqChoice, SkipJoinMlfq
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    DropSequence,
    SendReport,
    SessionId,
    StepFinished,
    WorkerAction,
)

# What is kept free for newcomers is at most one in so many of the pool's blocks.
_MAX_FREE_SHARE = 16


def new_core(settings: DecodeSettings, export: KvExport) -> DecodeCore:
    """The core that the settings ask for."""
    if settings.takes_turns:
        assert isinstance(settings.batching, FeedbackQueues)
        return TurnTakingCore(settings, export, settings.batching)
    return DecodeCore(settings, export)


class TurnTakingCore(DecodeCore):
    """Every task is a job of the queues, but for those whose KV is still on its way."""

    def __init__(self, settings: DecodeSettings, export: KvExport, rule: FeedbackQueues) -> None:
        super().__init__(settings, export)
        self._rule = rule
        most = settings.num_blocks // _MAX_FREE_SHARE
        self._queues = SkipJoinMlfq(replace(rule.settings, max_free_blocks=most))
        # Jobs of which the queues do not know all.
        self._changed: dict[TaskId, None] = {}
        # Prompts that begin like one that is being computed.
        self._awaiting: dict[TaskId, None] = {}
        # Answers whose next token has no room, whatever is free: they have to be given more.
        self._held_up: dict[TaskId, None] = {}
        # Iterations that the queues do not know of, and how long they took.
        self._num_steps, self._steps_s = 0, 0.0
        # Of the present plan.
        self._num_steps_finished, self._planned_at_s = 0, 0.0

    @property
    def load(self) -> WorkerLoad:
        """How full the worker is; free host memory is room like any other."""
        load = super().load
        num_free_blocks = load.num_free_blocks + load.num_free_swap_blocks
        return replace(load, num_free_blocks=num_free_blocks, num_parked=0)

    @property
    def can_compute(self) -> bool:
        """Whether `plan` may find something."""
        return len(self._queues) > 0

    def plan(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """The next iteration: those whose turn it is."""
        self._timer.look(now)
        self._prompts.steps_ran(self._num_steps_run, now)
        self._num_steps_run = 1
        self._note_steps(now)
        # Nobody is left out, and nobody waits: the same again.
        is_quiet = self._queues.has_chosen_all and len(self.batch) == len(self._queues)
        actions = self._sharing.news()
        prompts: list[GenerationTask] = []
        num_before = self._num_outside
        if not is_quiet:
            more, prompts = self._take_turn(now)
            actions += more
        actions += self._fill_slots()
        for task in self.batch.take_in():
            actions += self._growth.ask(task)
        more, chunks = self._prompts.plan_chosen(prompts, self._rule.settings.max_prompt_tokens)
        actions += more
        self._note_not_begun(prompts)
        plan = self.batch.plan(chunks, is_steady=is_quiet)
        if not plan.num_tokens and self._num_outside > num_before:
            # Somebody made room, and no event would call for another look.
            more, again = self.plan(now)
            return actions + more, again
        self._is_decoding = len(self.batch) > 0
        self._planned_at_s = now
        self._timer.planned(plan, now)
        return actions, plan if plan.num_tokens else None

    def check_invariants(self) -> None:
        """Raise AssertionError unless the queues know the tasks as they are."""
        super().check_invariants()
        self._queues.check_invariants()
        num_jobs = 0
        for task_id, task in self._task_by_id.items():
            if task.stage in (Stage.ADMITTED, Stage.ARRIVING, Stage.QUARANTINED):
                assert task_id not in self._queues
                continue
            num_jobs += 1
            is_parked = task.stage is Stage.PARKED
            assert not (is_parked and self._queues.is_on_device(task_id))
        assert num_jobs == len(self._queues)
        assert self._awaiting.keys() <= self._task_by_id.keys()
        assert self._held_up.keys() <= self._task_by_id.keys()

    @property
    def _num_outside(self) -> int:
        """It grows whenever somebody makes room."""
        return self._swapping.num_parked - len(self._task_by_id)

    def _command(self, event: CommandArrived) -> list[WorkerAction]:
        command = event.command
        task = self._task_by_id.get(command.task_id)
        if task is not None:
            self._changed[task.task_id] = None
        is_parked = task is not None and task.stage is Stage.PARKED
        if task is None or not is_parked or not isinstance(command, GrantGrowth):
            return super()._command(event)
        if task.is_growing:  # it comes back with them
            task.is_growing = False
            task.num_blocks += command.num_blocks
        return []

    def _admit_prompt(
        self, session_id: SessionId, command: AdmitPrompt, now: float
    ) -> list[WorkerAction]:
        if command.place is not None:
            # What another lends cannot go to host memory and come back.
            refused = BlocksRefused(command.task_id, self.pool.num_free_blocks)
            return [SendReport(session_id, refused)]
        is_new = command.task_id not in self._task_by_id
        actions = super()._admit_prompt(session_id, command, now)
        if is_new:
            self._add(self._task_by_id[command.task_id], now, KvPlace.NOWHERE)
        return actions

    def _arrived(self, task_id: TaskId, transport: str) -> list[WorkerAction]:
        actions = super()._arrived(task_id, transport)
        if actions:
            self._add(self._task_by_id[task_id], self._planned_at_s, KvPlace.DEVICE)
        return actions

    def _add(self, task: GenerationTask, now: float, place: KvPlace) -> None:
        prefill_s = self._rule.prefill_s(task.sequence.num_tokens)
        self._queues.add(task.task_id, prefill_s, self._needs_of(task), now, place)

    def _step_finished(self, event: StepFinished) -> list[WorkerAction]:
        for task in self._prompts.planned_tasks():
            self._changed[task.task_id] = None
        self._num_steps_finished = event.num_steps
        return super()._step_finished(event)

    def _look(self, task: GenerationTask) -> list[WorkerAction]:
        self._changed[task.task_id] = None
        return super()._look(task)

    def _room_again(self) -> list[WorkerAction]:
        actions, changed = self._growth.room_again()
        for task in changed:
            self.batch.watch(task)
            self._changed[task.task_id] = None
        return actions

    def _release(self, task: GenerationTask) -> list[WorkerAction]:
        self._forget(task.task_id)
        return super()._release(task)

    def _forget(self, task_id: TaskId) -> None:
        self._queues.remove(task_id)
        for ids in (self._changed, self._awaiting, self._held_up):
            ids.pop(task_id, None)

    # --- a turn -----------------------------------------------------------------------------------

    def _take_turn(self, now: float) -> tuple[list[WorkerAction], list[GenerationTask]]:
        """Pause and move whom the queues say; return the prompts that are to be computed."""
        self._tell_queues(now)
        choice = self._choose()
        actions: list[WorkerAction] = []
        for task_id in choice.give_up:
            task = self._task_by_id[task_id]
            preempted = SendReport(task.session_id, Preempted(task_id))
            actions += [*told_untold(task), preempted, *self._end(task)]
        chosen = set(choice.run)
        for task in [task for task in self._running.values() if task.task_id not in chosen]:
            actions += self._pause(task)
        for task_id in choice.swap_out:
            actions += self._swap_out(self._task_by_id[task_id])
        for task_id in choice.swap_in:
            actions += self._swap_in(self._task_by_id[task_id])
        self._ready.clear()
        prompts: list[GenerationTask] = []
        for task_id in choice.run:
            task = self._task_by_id[task_id]
            if task.stage is Stage.PROMPT:
                prompts.append(task)
            elif task.stage is Stage.READY:
                self._ready.append(task_id)
            if task.is_stuck:
                self._changed[task_id] = None
        for task_id in self._held_up:
            actions += self._growth.ask(self._task_by_id[task_id])
        has_slot = any(self._task_by_id[task_id].slot is not None for task_id in choice.run)
        if choice.run and not has_slot and not self._slots.num_free:
            prompts = self._prompts.begun  # who has a slot has to come to its end
        return actions, prompts

    def _choose(self) -> MlfqChoice:
        swapping = self._swapping
        room = KvRoom(self.pool.num_free_blocks, swapping.num_free_blocks, swapping.num_blocks)
        choice = self._queues.choose(room, may_give_up=False)
        if choice.run or choice.swap_out or choice.swap_in:
            return choice
        if any(task.is_growing for task in self._task_by_id.values()):
            return choice  # the ledger's answer may help
        return self._queues.choose(room)

    def _tell_queues(self, now: float) -> None:
        if self._num_steps:
            step_s = self._steps_s / self._num_steps
            self._queues.step_finished(step_s, now, self._num_steps)
            self._num_steps, self._steps_s = 0, 0.0
        for task_id in list(self._awaiting):
            if not self._prompts.is_awaiting(self._task_by_id[task_id]):
                del self._awaiting[task_id]
                self._changed[task_id] = None
        for task_id in self._changed:
            if task_id in self._queues:
                self._queues.update(task_id, self._needs_of(self._task_by_id[task_id]))
        self._changed.clear()

    def _note_steps(self, now: float) -> None:
        """Of the plan before."""
        if self._num_steps_finished:
            self._num_steps += self._num_steps_finished
            self._steps_s += now - self._planned_at_s
            self._num_steps_finished = 0

    def _note_not_begun(self, prompts: list[GenerationTask]) -> None:
        for task in prompts:
            task_id = task.task_id
            if task.slot is not None:
                self._changed[task_id] = None
                continue
            if task.awaited is not None:
                self._awaiting[task_id] = None
            self._queues.put(task_id, KvPlace.NOWHERE)
            self._queues.update(task_id, self._needs_of(task))

    def _needs_of(self, task: GenerationTask) -> JobNeeds:
        task_id = task.task_id
        self._held_up.pop(task_id, None)
        if task.stage is Stage.PARKED:
            return JobNeeds(task.num_blocks, 0, 0)
        num_blocks = self.pool.num_blocks_of(task_id)
        if task.stage is Stage.PROMPT:
            num_missing = task.num_missing_tokens
            if task.slot is not None:
                return JobNeeds(num_blocks, 0, num_missing, is_movable=False)
            can_run = task_id not in self._awaiting
            return JobNeeds(0, task.num_blocks, num_missing, can_run=can_run)
        if task.stage is Stage.HELD:  # until the router says that it may begin
            return JobNeeds(num_blocks, 0, 0, can_run=False, is_movable=False)
        can_run = self._growth.has_room(task) or task.num_owed_blocks > 0
        if not can_run:
            self._held_up[task_id] = None
        at_most = num_blocks_for(task.num_tokens_at_most + 1, self._settings.block_size)
        is_movable = at_most <= self.pool.num_blocks
        return JobNeeds(num_blocks, task.num_owed_blocks, 0, can_run, is_movable)

    def _pause(self, task: GenerationTask) -> list[WorkerAction]:
        """It keeps its blocks, and what it has asked for is still to come."""
        slot, actions = task.taken_slot, told_untold(task)
        self.batch.leave(task, slot)
        task.slot, task.stage = None, Stage.READY
        del self._running[slot]
        self._slots.give_back(slot)
        return [*actions, DropSequence(slot)]

    def _swap_out(self, task: GenerationTask) -> list[WorkerAction]:
        self._changed[task.task_id] = None
        num_blocks = self.pool.num_blocks_of(task.task_id) + task.num_owed_blocks
        swap_out = self._swapping.take_out(task)
        if swap_out is None:
            self._queues.put(task.task_id, KvPlace.DEVICE)
            return []
        is_growing = task.is_growing
        self._growth.forget(task)
        task.stage, task.num_blocks, task.is_growing = Stage.PARKED, num_blocks, is_growing
        report = SwappedOut(task.task_id, len(swap_out.block_ids))
        actions = [*self.lending.take_reports(), SendReport(task.session_id, report)]
        return [swap_out, *actions, *self._room_again()]

    def _swap_in(self, task: GenerationTask) -> list[WorkerAction]:
        self._changed[task.task_id] = None
        swap_in = self._swapping.bring_back(task, task.num_blocks)
        if swap_in is None:
            self._queues.put(task.task_id, KvPlace.HOST)
            return []
        task.stage = Stage.READY
        self._sharing.arrived(task)
        return [swap_in]
