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

from collections.abc import Iterable
from dataclasses import replace

from decode_worker.core import DecodeCore
from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.settings import DecodeSettings
from decode_worker.telling import told_untold
from scheduling.block_pool import num_blocks_for
from scheduling.feedback_queues import FeedbackQueues
from scheduling.ids import TaskId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitPrompt,
    BlocksRefused,
    Preempted,
    StartDecode,
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
    return (
        PlanningAheadCore(settings, export)
        if settings.plans_ahead
        else DecodeCore(settings, export)
    )


class TurnTakingCore(DecodeCore):
    """Every task is a job of the queues, but for those whose KV is still on its way."""

    def __init__(self, settings: DecodeSettings, export: KvExport, rule: FeedbackQueues) -> None:
        super().__init__(settings, export)
        self._rule = rule
        most = settings.num_blocks // _MAX_FREE_SHARE
        self._queues = SkipJoinMlfq(replace(rule.settings, max_free_blocks=most), self._awaits)
        # Jobs of which the queues do not know all.
        self._changed: dict[TaskId, None] = {}
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
        """The next iteration: those whose turn it is; None only where nobody can compute.

        No event would call for another look. A look that moves nobody's KV away finds room for
        whom it chooses; one that does only makes room, and is followed by the next. There are no
        more of these than there are tasks, for nobody comes back before somebody computes.
        """
        self._timer.look(now)
        self._prompts.steps_ran(self._num_steps_run, now)
        self._num_steps_run = 1
        self._note_steps(now)
        # Nobody is left out, and nobody waits: the same again.
        is_quiet = self._queues.has_chosen_all and len(self.batch) == len(self._queues)
        actions = self._sharing.news()
        prompts: list[GenerationTask] = []
        while True:
            num_outside = self._num_outside
            if not is_quiet:
                more, prompts = self._take_turn(now)
                actions += more
            more, plan = self._compute(prompts, is_quiet=is_quiet)
            actions += more
            if plan.num_tokens or self._num_outside == num_outside:
                break
        if not plan.num_tokens and self._prompts.num_begun:
            # They have all the slots, or what a chosen one now waits to share.
            more, plan = self._compute(self._prompts.begun, is_quiet=False)
            actions += more
        assert plan.num_tokens or self._is_called_again, "nobody would look again"
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
            if task_id not in self._changed:
                needs = self._needs_of(task)
                assert self._queues.needs_of(task_id) == needs
                is_held_up = not needs.can_run and task.stage is not Stage.HELD
                assert (task_id in self._held_up) == is_held_up
        assert num_jobs == len(self._queues)
        assert self._held_up.keys() <= self._task_by_id.keys()

    @property
    def _num_outside(self) -> int:
        """It grows whenever somebody makes room."""
        return self._swapping.num_parked - len(self._task_by_id)

    @property
    def _is_growing(self) -> bool:
        """The router is to answer somebody, whoever else goes on or does not."""
        return any(t.is_growing and t.stage is not Stage.HELD for t in self._task_by_id.values())

    @property
    def _is_called_again(self) -> bool:
        """An event is on its way, or nobody is here: the router is to answer somebody, KV to
        arrive, or a late sender to come to its end; or somebody waits for the router's word."""
        num_others = len(self._task_by_id) - len(self._queues) + len(self.held)
        return num_others > 0 or not len(self._queues) or self._is_growing

    def _command(self, event: CommandArrived) -> list[WorkerAction]:
        task = self._task_by_id.get(event.command.task_id)
        if task is not None:
            self._changed[task.task_id] = None
            if isinstance(event.command, StartDecode) and event.command.place is not None:
                return [self.lending.refusal(task)]  # as in `_admit_prompt`; it waits on
        return super()._command(event)

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
        self._update(task)

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
        self._note_changed(changed)
        return actions

    def _note_changed(self, tasks: Iterable[GenerationTask]) -> None:
        for task in tasks:
            self.batch.watch(task)
            self._changed[task.task_id] = None

    def _release(self, task: GenerationTask) -> list[WorkerAction]:
        self._forget(task.task_id)
        return super()._release(task)

    def _forget(self, task_id: TaskId) -> None:
        self._queues.remove(task_id)
        for ids in (self._changed, self._held_up):
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
        return actions, prompts

    def _compute(
        self, prompts: list[GenerationTask], *, is_quiet: bool
    ) -> tuple[list[WorkerAction], StepPlan]:
        """A token for each of the chosen answers, and chunks of these prompts."""
        actions = self._fill_slots()
        for task in self.batch.take_in():
            actions += self._growth.ask(task)
        more, chunks = self._prompts.plan_chosen(prompts, self._rule.settings.max_prompt_tokens)
        self._note_not_begun(prompts)
        return actions + more, self.batch.plan(chunks, is_steady=is_quiet)

    def _choose(self) -> MlfqChoice:
        swapping = self._swapping
        room = KvRoom(self.pool.num_free_blocks, swapping.num_free_blocks, swapping.num_blocks)
        choice = self._queues.choose(room, may_give_up=False)
        if choice.run or choice.swap_out or choice.swap_in:
            return choice
        if self._is_growing:
            return choice  # the ledger's answer may help
        return self._queues.choose(room)

    def _tell_queues(self, now: float) -> None:
        if self._num_steps:
            step_s = self._steps_s / self._num_steps
            self._queues.step_finished(step_s, now, self._num_steps)
            self._num_steps, self._steps_s = 0, 0.0
        for task_id in self._changed:
            if task_id in self._queues:
                self._update(self._task_by_id[task_id])
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
            self._queues.put(task_id, KvPlace.NOWHERE)
            self._update(task)

    def _awaits(self, task_id: TaskId) -> bool:
        """It begins like a prompt that is being computed, and one that is can always go on."""
        return self._prompts.is_awaiting(self._task_by_id[task_id])

    def _update(self, task: GenerationTask) -> None:
        needs = self._needs_of(task)
        self._queues.update(task.task_id, needs)
        self._held_up.pop(task.task_id, None)
        if not needs.can_run and task.stage is not Stage.HELD:
            self._held_up[task.task_id] = None

    def _needs_of(self, task: GenerationTask) -> JobNeeds:
        num_blocks = self.pool.num_blocks_of(task.task_id)
        if task.stage is Stage.PROMPT:
            num_missing = task.num_missing_tokens
            if task.slot is not None:
                return JobNeeds(num_blocks, 0, num_missing, is_movable=False)
            return JobNeeds(0, task.num_blocks, num_missing)
        if task.stage is Stage.HELD:
            # Until the router says that it may begin, its blocks are not the queues' to take.
            return JobNeeds(0, 0, 0, can_run=False, is_movable=False)
        num_new = 0 if self._growth.has_room(task) else task.num_owed_blocks
        can_run = num_new > 0 or self._growth.has_room(task)
        if task.stage is Stage.PARKED:
            return JobNeeds(task.num_blocks, 0, 0, can_run)
        at_most = num_blocks_for(task.num_tokens_at_most + 1, self._settings.block_size)
        is_movable = at_most <= self.pool.num_blocks
        return JobNeeds(num_blocks, num_new, 0, can_run, is_movable)

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
        num_blocks = self.pool.num_blocks_of(task.task_id)
        swap_out = self._swapping.take_out(task)
        assert swap_out is not None, "the queues know what host memory holds"
        task.stage, task.num_blocks = Stage.PARKED, num_blocks + self._growth.take_along(task)
        report = SwappedOut(task.task_id, len(swap_out.block_ids))
        actions = [*self.lending.take_reports(), SendReport(task.session_id, report)]
        more, changed = self._growth.hand_out()
        self._note_changed(changed)
        return [swap_out, *actions, *more]

    def _swap_in(self, task: GenerationTask) -> list[WorkerAction]:
        self._changed[task.task_id] = None
        swap_in = self._swapping.bring_back(task, task.num_blocks)
        assert swap_in is not None, "the queues know what the device holds"
        task.stage = Stage.READY
        self._sharing.arrived(task)
        return [swap_in]
