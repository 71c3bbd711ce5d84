"""When a worker that is being drained is empty."""

from dataclasses import replace

import pytest

from tandemserve import DeadlineExceeded, StaleIncarnation, WorkerView
from tandemserve.cli.drain import DrainWatch

WORKER = WorkerView(
    "decode-1", "decode", "", 5, "ready", "", 64, 60, 16, 2, 1, "c", "cordoned", num_tasks=3
)
LOST = replace(WORKER, state="lost", problem="its stream broke", num_tasks=0, admission="")


def watch(timeout_s: float = 100.0) -> DrainWatch:
    return DrainWatch(WORKER, 0.0, timeout_s)


def test_it_is_over_when_the_worker_has_been_empty_for_a_moment() -> None:
    drain = watch()
    empty = replace(WORKER, num_tasks=0, num_running=0)
    assert drain.look([WORKER], 0.0) == "decode-1: 3 tasks left, 2 running, 0ms"
    assert drain.look([WORKER], 0.2) == ""
    assert drain.look([empty], 1.0).startswith("decode-1: 0 tasks left")
    # What a router had sent before it heard of the cordon arrives now.
    drain.look([replace(WORKER, num_tasks=1)], 1.2)
    drain.look([empty], 1.4)
    drain.look([empty], 1.8)
    assert not drain.is_over
    drain.look([empty], 1.9)
    assert drain.is_over


def test_a_worker_that_is_not_connected_is_not_empty() -> None:
    drain = watch()
    for now in (1.0, 2.0, 3.0):
        drain.look([LOST], now)
    assert not drain.is_over


def test_a_worker_that_is_lost_meanwhile_is_told_of_once_and_so_is_its_return() -> None:
    drain = watch()
    drain.look([WORKER], 0.0)
    assert drain.look([LOST], 1.0) == (
        "decode-1 is lost (its stream broke): its tasks go on elsewhere; waiting for its return or "
        "its end, 1.0s"
    )
    assert drain.look([LOST], 2.0) == ""
    assert drain.look([WORKER], 3.0) == "decode-1: 3 tasks left, 2 running, 3.0s"


def test_too_late_for_a_lost_worker_says_that_it_is_lost_not_that_it_has_tasks() -> None:
    drain = watch(timeout_s=5.0)
    with pytest.raises(DeadlineExceeded) as caught:
        drain.look([LOST], 5.0)
    assert str(caught.value) == (
        "decode-1 is lost (its stream broke) after 5.0s: its tasks go on elsewhere; stop its "
        "process, or wait longer (--drain-timeout) for its return"
    )


def test_a_worker_whose_life_has_ended_is_empty() -> None:
    drain = watch()
    assert drain.look([], 1.0) == "decode-1 has left the cluster, 1.0s"
    assert drain.is_over
    assert drain.has_left
    assert drain.outcome == "decode-1 has left the cluster; nothing is left to stop"


def test_a_new_life_of_the_worker_is_not_drained() -> None:
    """Whoever stopped it now would break off what the new life has taken."""
    drain = watch()
    drain.look([WORKER], 0.0)
    with pytest.raises(StaleIncarnation, match=r"started again meanwhile .* drain it again"):
        drain.look([replace(WORKER, incarnation=6, admission="open")], 1.0)
    assert not drain.is_over


def test_an_empty_worker_may_be_stopped_or_opened() -> None:
    assert watch().outcome == "decode-1 is empty; stop it, or `tandem admin uncordon decode-1`"


def test_too_late_is_an_error_that_says_what_is_left() -> None:
    drain = watch(timeout_s=5.0)
    drain.look([WORKER], 4.0)
    with pytest.raises(DeadlineExceeded, match=r"still has 3 tasks after 5.0s and stays cordoned"):
        drain.look([WORKER], 5.0)


def test_a_worker_that_somebody_opens_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded, match="somebody uncordoned it"):
        watch().look([replace(WORKER, admission="open")], 1.0)
