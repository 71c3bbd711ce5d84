"""Which passes a model hears of, and how long they are said to have taken."""

from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batching_rules import FillToTarget
from scheduling.deadline_fill import DeadlineFill
from scheduling.pass_timer import PassTimer, model_of
from scheduling.step import ScheduledChunk, StepPlan

PASS = StepPlan((ScheduledChunk(0, 0, 64, samples=True),))


def timed(num_passes: int, disturbed_after: int | None = None) -> OnlineBatchTime:
    """Passes of 10 ms; one of them with something else beside it that takes a second."""
    model, now = OnlineBatchTime(), 0.0
    timer = PassTimer(model)
    for number in range(num_passes):
        timer.look(now)
        timer.planned(PASS, now)
        now += 0.01
        if number == disturbed_after:
            now += 1.0
            timer.disturbed()
        timer.finished()
    timer.look(now)
    return model


def test_one_pass_in_four_is_told() -> None:
    assert timed(40).num_observed == 10


def test_a_pass_with_something_else_beside_it_is_not_told_nor_is_the_next() -> None:
    # The fourth is the first that would be told.
    assert timed(4).num_observed == 1
    assert timed(4, disturbed_after=3).num_observed == 0
    assert timed(4, disturbed_after=2).num_observed == 0
    assert timed(8, disturbed_after=3).num_observed == 1


def test_a_pass_that_failed_is_not_told() -> None:
    model = OnlineBatchTime()
    timer = PassTimer(model)
    for number in range(8):
        timer.look(0.01 * number)
        timer.planned(PASS, 0.01 * number)
    timer.look(1.0)
    assert model.num_observed == 0
    assert timer.error is None


def test_the_model_is_that_of_the_rule_where_it_has_one() -> None:
    model = OnlineBatchTime()
    assert model_of(DeadlineFill(model, 512), is_needed=True) is model
    assert model_of(FillToTarget(512), is_needed=False) is None
    assert model_of(None, is_needed=True) is not None
