"""Tells a model of batch times how long passes really took."""

from scheduling.batch_time import shape_of_plan
from scheduling.batch_time_online import OnlineBatchTime, PassTimeError
from scheduling.batching import BatchingRule
from scheduling.step import StepPlan

# A pass in so many is told: learning costs more than planning.
_EVERY = 4


def model_of(rule: BatchingRule | None, *, is_needed: bool) -> OnlineBatchTime | None:
    """The model by which the rule plans; a new one where it has none and one is needed."""
    model = getattr(rule, "model", None)
    if isinstance(model, OnlineBatchTime):
        return model
    return OnlineBatchTime() if is_needed else None


class PassTimer:
    """From one plan to the next, if the pass between them ended well."""

    def __init__(self, model: OnlineBatchTime | None) -> None:
        self.model = model
        # The latest instant that anybody has told.
        self.looked_at_s = 0.0
        self._plan: StepPlan | None = None
        self._began_at_s = 0.0
        self._has_finished = False
        self._num_passes = 0
        self._num_steps = 1
        self._is_disturbed = False

    @property
    def error(self) -> PassTimeError | None:
        """How far off the model is; None before the first pass, or without a model."""
        return None if self.model is None else self.model.error

    def planned(self, plan: StepPlan, now: float) -> None:
        """It begins."""
        self._num_passes += 1
        is_told = self._num_passes % _EVERY == 0 and not self._is_disturbed
        self._is_disturbed = False
        if self.model is not None and is_told:
            self._plan, self._began_at_s, self._has_finished = plan, now, False

    def finished(self, num_steps: int = 1) -> None:
        """The planned pass ran to its end; how long it took shows when the next is planned."""
        self._has_finished, self._num_steps = True, num_steps

    def disturbed(self) -> None:
        """The engine did more than the present pass, or will before the next: neither counts."""
        self._plan, self._is_disturbed = None, True

    def heard(self, at_s: float) -> None:
        """Something came from outside then; perhaps a while after the last pass."""
        self.looked_at_s = max(self.looked_at_s, at_s)

    def look(self, now: float) -> None:
        """The next one is about to be planned."""
        self.looked_at_s = now
        if self._plan is not None and self.model is not None and self._has_finished:
            num_steps = self._num_steps
            shape = shape_of_plan(self._plan, num_steps)
            self.model.observe(shape, (now - self._began_at_s) / num_steps)
        self._plan = None
