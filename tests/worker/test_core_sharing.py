from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.fake_runner import FakeRunner
from runtime.clock import ManualClock
from runtime.core_sharing import LINGER_S, CoreSharing
from scheduling.step import StepPlan
from worker.core_sharing import CoreSharingRunner


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_step_runs_with_the_threads_that_others_leave(tmp_path: Path) -> None:
    clock, used = ManualClock(100.0), list[int]()

    def note(plan: StepPlan) -> None:
        used.append(torch.get_num_threads())
        clock.advance(0.5)

    with CoreSharing(tmp_path / "cores", 3) as sharing:
        inner = FakeRunner(100, 16, 4, before_step=note)
        runner = CoreSharingRunner(inner, sharing, clock)
        runner.step(StepPlan(()))
        assert used == [3]
        # Another engine of the machine, as it looks in the file while it computes.
        other = memoryview(bytearray(8)).cast("d")
        other[0] = clock.now() + LINGER_S
        with (tmp_path / "cores").open("r+b") as file:
            file.seek(8)
            file.write(other.cast("B"))
        runner.step(StepPlan(()))
        assert used == [3, 1]
        runner.step(StepPlan(()))
        assert used == [3, 1, 3]
