"""Tells the batching rule's model how long passes really took."""

from scheduling.batch_time import shape_of_plan
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batching import BatchingRule
from scheduling.step import StepPlan

# A pass in so many is told: learning costs more than planning.
_EVERY = 4


class PassTimer:
    """From one plan to the next, if the pass between them ended well."""

    def __init__(self, rule: BatchingRule) -> None:
        model = getattr(rule, "model", None)
        self.model = model if isinstance(model, OnlineBatchTime) else None
        self._plan: StepPlan | None = None
        self._began_at_s = 0.0
        self._has_finished = False
        self._num_passes = 0
        self._num_steps = 1

    def planned(self, plan: StepPlan, now: float) -> None:
        """It begins."""
        self._num_passes += 1
        if self.model is not None and self._num_passes % _EVERY == 0:
            self._plan, self._began_at_s, self._has_finished = plan, now, False

    def finished(self, num_steps: int = 1) -> None:
        """The planned pass ran to its end; how long it took shows when the next is planned."""
        self._has_finished, self._num_steps = True, num_steps

    def look(self, now: float) -> None:
        """The next one is about to be planned."""
        if self._plan is not None and self.model is not None and self._has_finished:
            num_steps = self._num_steps
            shape = shape_of_plan(self._plan, num_steps)
            self.model.observe(shape, (now - self._began_at_s) / num_steps)
        self._plan = None
