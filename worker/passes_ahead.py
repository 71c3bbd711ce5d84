"""Passes of an engine whose device computes while the host goes on: the next one is begun first.

A turn ends one pass. Before it waits for the tokens of the pass that runs, it orders the one behind
it, if the core is sure of it; so while reports leave and events are taken in, the device computes.
Nothing else is different: the core hears of one pass after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.runner import LogitsNotFinite, PendingStep, PipelinedRunner, RankLost
from runtime.clock import Clock
from runtime.logging import get_logger
from scheduling.step import StepPlan
from scheduling.worker_events import StepFailed, StepFinished, WorkerAction, WorkerEvent
from worker.engine_pulse import EnginePulse
from worker.output_text import OutputText

log = get_logger()


class PlansAhead(Protocol):
    """A core that knows a pass ahead; see decode_worker/planning_ahead.py."""

    def handle(self, event: WorkerEvent) -> list[WorkerAction]: ...

    def plan(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """Asked when nothing runs."""
        ...

    def plan_ahead(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]:
        """Asked while one pass runs."""
        ...


class LoopHands(Protocol):
    """What of the engine loop passes need."""

    @property
    def pulse(self) -> EnginePulse: ...

    @property
    def refused(self) -> tuple[int, ...]:
        """Slots of sequences that the engine did not take."""
        ...

    def perform(self, actions: list[WorkerAction]) -> None: ...

    def flush(self) -> None:
        """Send the reports so far."""
        ...

    def computed(self, began_at_s: float, plan: StepPlan) -> None:
        """A pass ended well."""
        ...


# What makes them, given the loop.
MakePasses = Callable[[LoopHands, OutputText, Clock], "PassesAhead"]


@dataclass(slots=True)
class _Pass:
    plan: StepPlan
    pending: PendingStep
    # When it was planned; of one planned ahead, when the one before it ended.
    began_at_s: float


class PassesAhead:
    """Used by the engine thread only."""

    def __init__(
        self,
        core: PlansAhead,
        runner: PipelinedRunner,
        loop: LoopHands,
        text: OutputText,
        clock: Clock,
    ) -> None:
        self._core = core
        self._runner = runner
        self._loop = loop
        self._text = text
        self._clock = clock
        # It was begun while the one before it ran.
        self._present: _Pass | None = None

    @property
    def is_running(self) -> bool:
        """A pass was begun, and its result is still to be taken."""
        return self._present is not None

    def turn(self) -> bool:
        """Take one pass to its end; False where there is nothing to compute."""
        began, self._present = self._present or self._begin_planned(), None
        if began is None:
            return False
        if isinstance(began, StepFailed):
            self._tell(began)
            return True
        behind = self._begin_behind()
        self._loop.flush()
        self._loop.pulse.begin(began.plan.num_tokens)
        outcome = self._end(began)
        if isinstance(outcome, StepFinished):
            self._loop.computed(began.began_at_s, began.plan)
            if isinstance(behind, _Pass):
                behind.began_at_s = self._clock.now()
                self._present = behind
        elif isinstance(behind, _Pass):
            # It went on from tokens that do not exist.
            behind.pending.discard()
        self._tell(outcome)
        if isinstance(behind, StepFailed):
            self._tell(behind)
        return True

    def close(self) -> None:
        """Return when nothing computes any more: memory may go."""
        if self._present is not None:
            self._present.pending.discard()
            self._present = None

    def _begin_planned(self) -> _Pass | StepFailed | None:
        now = self._clock.now()
        return self._begin(*self._core.plan(now), now)

    def _begin_behind(self) -> _Pass | StepFailed | None:
        now = self._clock.now()
        return self._begin(*self._core.plan_ahead(now), now)

    def _begin(
        self, actions: list[WorkerAction], plan: StepPlan | None, now: float
    ) -> _Pass | StepFailed | None:
        self._loop.perform(actions)
        if self._loop.refused:
            return refusal(self._loop.refused)
        if plan is None:
            return None
        self._loop.flush()  # what is known before the step need not wait for it
        self._loop.pulse.begin(plan.num_tokens)
        try:
            return _Pass(plan, self._runner.begin(plan), now)
        except RankLost:
            raise  # no step can follow
        except Exception as error:
            return failure(error, plan)

    def _end(self, present: _Pass) -> StepFinished | StepFailed:
        try:
            result = present.pending.result()
            return StepFinished(self._text.process(result), result.prompt_logprobs)
        except RankLost:
            raise
        except Exception as error:
            return failure(error, present.plan)

    def _tell(self, event: StepFinished | StepFailed) -> None:
        self._loop.perform(self._core.handle(event))


def refusal(slots: tuple[int, ...]) -> StepFailed:
    """What the core is told of sequences that the engine did not take."""
    message = "a token id or a block is none of this model's; see the worker's log"
    return StepFailed(message, slots)


def failure(error: Exception, plan: StepPlan) -> StepFailed:
    """What the core is told of a pass that raised; only here that becomes failed tasks."""
    log.error("engine_step_failed", num_tokens=plan.num_tokens, exc_info=error)
    message = f"the engine failed ({type(error).__name__}); see the worker's log"
    return StepFailed(message, error.slots if isinstance(error, LogitsNotFinite) else None)
