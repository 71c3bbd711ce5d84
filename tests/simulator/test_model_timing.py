"""Steps of one plan: when each ends, and which one is computed at an instant."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape
from scheduling.step import CountedDecodes, StepPlan
from simulator.hardware.description import load_hardware
from simulator.model_timing import LinearSteps, ModelTiming
from simulator.worker_spec import WorkerSpec

HARDWARE = load_hardware("h100")
HELLO = WorkerSpec("decode", 10, 16, 8, 64).hello("decode-0", 1)  # type: ignore[arg-type]


def timing() -> ModelTiming:
    model = HARDWARE.batch_time_model()
    return ModelTiming(model, HARDWARE.transfer.model(), HARDWARE.swap_model(), block_bytes=1)


def test_steps_of_a_plan_take_what_single_steps_would() -> None:
    plan = StepPlan((), CountedDecodes(frozenset({1, 4, 7}), 3000, 1), num_steps=50)
    times = timing().steps(HELLO, plan)
    model = HARDWARE.batch_time_model()
    each_s = [model.seconds(BatchShape(3, 3000 + 3 * number)) for number in range(50)]
    assert list(times.each_s(50)) == pytest.approx(each_s, rel=1e-9)
    ends_s = list(accumulate(each_s))
    assert [times.end_s(number) for number in range(1, 51)] == pytest.approx(ends_s, rel=1e-9)


@given(
    first_s=st.floats(1e-4, 1.0),
    more_s=st.sampled_from([0.0, 1e-12, 1e-7, 1e-3, 0.5]),
    elapsed_s=st.floats(0, 30),
)
def test_the_step_of_an_instant_began_before_it_and_ends_after_it(
    first_s: float, more_s: float, elapsed_s: float
) -> None:
    times = LinearSteps(first_s, more_s)
    number = times.num_steps_begun(elapsed_s)
    assert number >= 1
    assert times.end_s(number) >= elapsed_s
    assert number == 1 or times.end_s(number - 1) < elapsed_s


def test_before_the_first_step_begins_it_is_the_first() -> None:
    assert LinearSteps(0.1, 0.01).num_steps_begun(-1.0) == 1
