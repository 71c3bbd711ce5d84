"""Runs in processes of their own: their order, and what becomes of those that go wrong."""

import io
import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Callable
from functools import partial

import pytest

from runtime.clock import ManualClock
from simulator.hardware.description import load_hardware
from simulator.load import Load, LoadSettings
from simulator.runs import Note, Runner
from simulator.side_by_side import RunDied, RunFailed, run_side_by_side
from simulator.traces.workload import TraceRequest, Workload

LOCK = threading.Lock()


@pytest.fixture
def runner() -> Runner:
    workload = Workload("one", (TraceRequest(0.0, 10, 10),))
    load = Load.of(workload, load_hardware("h200"), LoadSettings(slo="none"))
    return Runner(load, ManualClock(), io.StringIO())


def square(runner: Runner, number: int) -> int:
    runner.tell(Note("fcfs", "even" if number % 2 == 0 else "odd", f"first is {number}"))
    runner.wall_times.append({"policy": str(number)})
    return number * number


def fail(runner: Runner) -> int:
    raise ValueError("a defect")


def die(runner: Runner) -> int:
    os._exit(9)


def die_in_the_middle(runner: Runner) -> int:
    # So many bytes are to follow, and do not.
    os.write(vars(runner.progress)["_connection"].fileno(), struct.pack("!i", 4096) + b"begin")
    os._exit(9)


def wait_for_ever(runner: Runner) -> int:
    threading.Event().wait()
    return 0


def give_what_cannot_be_sent(runner: Runner) -> object:
    return threading.Lock()


def find_lock_free(runner: Runner) -> bool:
    return LOCK.acquire(blocking=False)


@pytest.mark.parametrize("num_at_once", [1, 2, 9])
def test_results_notes_and_times_are_in_the_order_of_the_jobs(
    runner: Runner, num_at_once: int
) -> None:
    jobs = [partial(square, number=number) for number in range(5)]
    assert run_side_by_side(jobs, runner, num_at_once) == [0, 1, 4, 9, 16]
    assert [one["policy"] for one in runner.wall_times] == ["0", "1", "2", "3", "4"]
    assert isinstance(runner.stream, io.StringIO)
    assert runner.stream.getvalue() == "note: fcfs: first is 0\nnote: fcfs: first is 1\n"


def test_a_defect_in_a_process_is_told_and_ends_the_others(runner: Runner) -> None:
    told = r"(?s)run 2 of 2 failed in a process of its own.*ValueError: a defect"
    with pytest.raises(RunFailed, match=told):
        run_side_by_side([wait_for_ever, fail], runner, 2)
    assert not multiprocessing.active_children()


def test_a_result_that_cannot_be_sent_is_a_defect_that_is_told(runner: Runner) -> None:
    told = r"(?s)run 2 of 2 failed in a process of its own.*cannot pickle"
    with pytest.raises(RunFailed, match=told):
        run_side_by_side([wait_for_ever, give_what_cannot_be_sent], runner, 2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("death", [die, die_in_the_middle])
def test_a_process_that_is_gone_is_told_and_ends_the_others(
    runner: Runner, death: Callable[[Runner], int]
) -> None:
    with pytest.raises(RunDied, match=r"run 2 of 2 ended with exit code 9 .* lower --jobs"):
        run_side_by_side([wait_for_ever, death], runner, 2)
    assert not multiprocessing.active_children()


def test_an_error_says_what_the_run_was_that_it_ended(runner: Runner) -> None:
    names = ["fcfs on mixed:1", "orca on mixed:1"]
    with pytest.raises(RunFailed, match=r"run 2 of 2 \(orca on mixed:1\) failed"):
        run_side_by_side([wait_for_ever, fail], runner, 2, names)
    with pytest.raises(RunDied, match=r"run 1 of 2 \(fcfs on mixed:1\) ended with exit code 9"):
        run_side_by_side([die, wait_for_ever], runner, 2, names)


@pytest.mark.timeout(30)
def test_a_process_that_heeds_no_sigterm_is_ended_too(runner: Runner) -> None:
    """It ignores what the process that began it ignores."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(RunFailed):
            run_side_by_side([wait_for_ever, fail], runner, 2)
        assert not multiprocessing.active_children()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_begins_with_no_lock_that_a_thread_here_holds(runner: Runner) -> None:
    with LOCK:
        assert run_side_by_side([find_lock_free, find_lock_free], runner, 2) == [True, True]
