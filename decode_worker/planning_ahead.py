"""A decode core that plans the next pass of answers while one runs, so that a GPU need not wait.

The pass ahead gives another token to each answer that surely goes on, before anybody knows whether
its newest token ends it. Where it does, or the answer is cancelled, the row counts for nothing; but
the device writes its KV all the same, so blocks and slot stay taken until that pass has ended.

Whoever only begins may join a pass ahead. All else waits for `plan`, which is asked when nothing
runs: prompts, whoever makes room or waits for it. Policies whose answers take turns at every token
plan nothing ahead (decode_worker/turn_taking.py).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from decode_worker.core import DecodeCore
from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.settings import DecodeSettings
from scheduling.kv_export import KvExport
from scheduling.messages import MakeRoom
from scheduling.step import StepPlan
from scheduling.worker_events import CommandArrived, DropSequence, StepFinished, WorkerAction


@dataclass(frozen=True, slots=True)
class _Pass:
    """Planned, and not told to have ended."""

    plan: StepPlan
    # By slot, those that a pass planned ahead writes for; empty for one that `plan` gave.
    rows: Mapping[int, GenerationTask]
    is_ahead: bool


class PlanningAheadCore(DecodeCore):
    """`plan` is asked when no pass runs, `plan_ahead` while one does.

    Passes end in the order of their plans: StepFinished is of the first. With StepFailed all have
    ended, and none of their tokens exist.
    """

    def __init__(self, settings: DecodeSettings, export: KvExport) -> None:
        assert settings.max_untold_tokens == 1, "an engine that only counts is not ahead of anybody"
        super().__init__(settings, export)
        # At most one that runs, and one behind it.
        self._passes: deque[_Pass] = deque()
        # What would take running answers away; as many as come during one pass.
        self._wishes: list[CommandArrived] = []

    @property
    def num_leaving(self) -> int:
        """Answers that are over, and keep what the pass that runs still writes to."""
        return len(self._leaving)

    def plan(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """See `DecodeCore.plan`. Nothing runs."""
        actions, plan = super().plan(now)
        self._passes.clear()
        if plan is not None:
            self._passes.append(_Pass(plan, {}, is_ahead=False))
        return actions, plan

    def plan_ahead(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """The pass after the one that runs, to be begun before its tokens are known.

        None where that is not sure, or nobody goes on: then `plan` is next. The actions touch
        nothing that runs.
        """
        (present,) = self._passes
        if present.is_ahead:
            # It began when the one before it ended, which is now.
            self._timer.look(now)
            self._prompts.steps_ran(1, now)
            self._prompts.last_decode_at_s = now
            self._timer.planned(present.plan, now)
        if not self._is_decoding or self._wishes or len(self._prompts):
            return [], None
        actions = self._fill_slots()
        plan, rows, starved = self.batch.plan_ahead()
        if starved and not self._may_wait(starved):
            return actions, None
        for task in starved:
            actions += self._growth.ask(task)
        if not rows:
            return actions, None
        self._passes.append(_Pass(plan, rows, is_ahead=True))
        return actions, plan

    def check_invariants(self) -> None:
        """Raise AssertionError unless what runs writes to blocks that its answers hold."""
        super().check_invariants()
        for each in self._passes:
            for slot, task in each.rows.items():
                assert (self._running.get(slot) or self._leaving.get(slot)) is task
                assert self.pool.num_blocks_of(task.task_id), "it writes to nobody's block"
        is_written = {slot for each in self._passes for slot in each.rows}
        assert self._leaving.keys() <= is_written, "nobody would let go of it"
        for task in self._leaving.values():
            assert (task.stage, task.slot) == (Stage.LEAVING, None)
        assert self._passes or not self._wishes

    def _may_wait(self, starved: list[GenerationTask]) -> bool:
        """They lack room, and nobody is to make any, nor are they to leave the batch."""
        if self._settings.is_mixed and self._settings.outgrown_wait_in_line:
            return False
        return not self._victims.is_one_needed(starved, len(self.batch))

    def _command(self, event: CommandArrived) -> list[WorkerAction]:
        if isinstance(event.command, MakeRoom) and self._passes:
            self._wishes.append(event)
            return []
        return super()._command(event)

    def _step_finished(self, event: StepFinished) -> list[WorkerAction]:
        if self._passes:
            self._passes.popleft()
        over, self._leaving = self._leaving, {}
        if over:
            outputs = tuple(output for output in event.outputs if output.slot not in over)
            event = replace(event, outputs=outputs)
        actions = super()._step_finished(event)
        if self._passes:
            self.batch.follow(self._passes[0].rows)
            self._is_decoding = True
        return actions + self._let_go(over) + self._grant_wishes()

    def _step_failed(self, message: str, slots: tuple[int, ...] | None) -> list[WorkerAction]:
        self._passes.clear()
        over, self._leaving = self._leaving, {}
        for slot, task in over.items():
            if slots is None or slot in slots:
                self.pool.distrust(task.task_id)
        if slots is not None:
            slots = tuple(slot for slot in slots if slot not in over)
        actions = super()._step_failed(message, slots)
        return actions + self._let_go(over) + self._grant_wishes()

    def _end(self, task: GenerationTask) -> list[WorkerAction]:
        slot = task.slot
        if task.stage is Stage.LEAVING:
            return []
        if slot is None or not any(slot in each.rows for each in self._passes):
            return super()._end(task)
        self._growth.forget(task)
        self.batch.leave(task, slot)
        del self._running[slot]
        # Without a slot: it lends nothing, and nothing of its table is changed.
        task.slot, task.stage = None, Stage.LEAVING
        self._leaving[slot] = task
        return []

    def _let_go(self, over: Mapping[int, GenerationTask]) -> list[WorkerAction]:
        """The pass that wrote for them has ended."""
        actions: list[WorkerAction] = []
        for slot, task in over.items():
            self._slots.give_back(slot)
            actions += [DropSequence(slot), *self._release(task)]
        return actions

    def _grant_wishes(self) -> list[WorkerAction]:
        if self._passes:
            return []
        wishes, self._wishes = self._wishes, []
        return [
            action for wish in wishes for action in super(PlanningAheadCore, self)._command(wish)
        ]
