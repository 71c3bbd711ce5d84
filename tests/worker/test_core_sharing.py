from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runtime.clock import ManualClock
from runtime.core_sharing import MIN_CORES_OF_A_SHARE, CoreSharing
from runtime.core_sharing_testing import EngineProcess
from worker.core_sharing import SharedCores


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_an_iteration_has_the_threads_that_other_engines_leave(tmp_path: Path) -> None:
    path, num_cores = tmp_path / "cores", 2 * MIN_CORES_OF_A_SHARE
    clock = ManualClock(100.0)
    with CoreSharing(path, num_cores) as sharing, EngineProcess(path, num_cores) as other:
        cores = SharedCores(sharing, clock)
        assert cores.begin()
        assert torch.get_num_threads() == num_cores
        cores.end(has_computed=True)
        assert other.begin(clock.now()) is not None
        assert cores.begin()
        assert torch.get_num_threads() == MIN_CORES_OF_A_SHARE
        cores.end(has_computed=True)


def test_an_iteration_waits_while_another_engine_has_all_cores(tmp_path: Path) -> None:
    path, clock = tmp_path / "cores", ManualClock(100.0)
    with CoreSharing(path, 2) as sharing, EngineProcess(path, 2) as other:
        cores = SharedCores(sharing, clock)
        assert other.begin(clock.now()) == 2
        assert not cores.begin()
        clock.advance(0.01)
        other.end(clock.now())
        assert cores.begin()
