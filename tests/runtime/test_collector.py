"""The collector is as it was once the computation that it was spared for is over."""

import gc

import pytest

from runtime.collector import spared_collector


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
