"""When a worker that is being drained is empty."""

from dataclasses import replace

import pytest

from tandemserve import DeadlineExceeded, WorkerView
from tandemserve.cli.drain import DrainWatch

WORKER = WorkerView(
    "decode-1", "decode", "", 5, "ready", "", 64, 60, 16, 2, 1, "c", "cordoned", num_tasks=3
)


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
    lost = replace(WORKER, state="lost", num_tasks=0, admission="")
    for now in (1.0, 2.0, 3.0):
        drain.look([lost], now)
    assert not drain.is_over


@pytest.mark.parametrize("views", [[], [replace(WORKER, incarnation=6)]])
def test_a_worker_whose_life_has_ended_is_empty(views: list[WorkerView]) -> None:
    drain = watch()
    assert "has left the cluster" in drain.look(views, 1.0)
    assert drain.is_over
    assert drain.has_left


def test_too_late_is_an_error_that_says_what_is_left() -> None:
    drain = watch(timeout_s=5.0)
    drain.look([WORKER], 4.0)
    with pytest.raises(DeadlineExceeded, match=r"still has 3 tasks after 5.0s and stays cordoned"):
        drain.look([WORKER], 5.0)


def test_a_worker_that_somebody_opens_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded, match="somebody uncordoned it"):
        watch().look([replace(WORKER, admission="open")], 1.0)
