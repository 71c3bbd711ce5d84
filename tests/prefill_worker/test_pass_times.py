"""A prefill worker times its passes and tells how well it could have foretold them."""

from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.ids import TaskId
from scheduling.messages import SequenceSpec, StartPrefill
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import CommandArrived, SampledOutput, SessionId, StepFinished


def compute_prompts(core: PrefillCore, num_prompts: int, pass_s: float) -> None:
    """One after the other, a pass each."""
    now = 0.0
    for number in range(num_prompts):
        prompt = tuple(range(100 * number, 100 * number + 6))
        spec = SequenceSpec(prompt, (), SamplingParams(), StopParams(8))
        core.handle(CommandArrived(SessionId(1), StartPrefill(TaskId(f"{number}/0"), spec)))
        _, plan = core.plan(now)
        assert plan is not None
        now += pass_s
        output = SampledOutput(plan.chunks[0].slot, 7, "x")
        core.handle(StepFinished((output,)))
        core.plan(now)
        core.check_invariants()


def test_it_tells_how_far_its_model_of_passes_is_off() -> None:
    core = PrefillCore(PrefillSettings(200, 4, 100, 8, is_learning=True))
    assert core.load.pass_time_error is None
    compute_prompts(core, 80, pass_s=0.1)
    error = core.load.pass_time_error
    assert error is not None
    assert error.num_passes >= 16
    assert error.median < 0.01, "all passes are alike"


def test_without_being_asked_to_it_learns_nothing() -> None:
    core = PrefillCore(PrefillSettings(200, 4, 100, 8))
    compute_prompts(core, 8, pass_s=0.1)
    assert core.load.pass_time_error is None
