"""The collector is as it was once the computation that it was spared for is over."""

import gc
from collections.abc import Iterator

import pytest

from runtime.collector import spared_collector


@pytest.fixture(autouse=True)
def whole_heap() -> Iterator[None]:
    """Each test begins with nothing taken out of the heap, and ends as the others want it."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_the_collector_is_spared_for_one_computation_and_no_longer() -> None:
    before = gc.get_threshold()
    with spared_collector():
        assert gc.get_threshold()[0] > before[0]
        assert gc.get_freeze_count() > 0
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def test_a_computation_that_fails_leaves_the_collector_as_it_was() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), spared_collector():
        _ = 1 / 0
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def test_a_heap_that_was_taken_out_before_stays_out_and_what_came_since_stays_in() -> None:
    gc.freeze()
    num_out = gc.get_freeze_count()
    since = [[number] for number in range(10_000)]
    with spared_collector():
        assert gc.get_freeze_count() <= num_out
    # Some of what is out is freed by reference counts; none of what came since went there.
    assert num_out - len(since) / 2 < gc.get_freeze_count() <= num_out
