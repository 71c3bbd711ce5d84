"""When the demo may say that every block came back."""

from dataclasses import replace

import pytest

from deploy.local.leak_check import LeakCheck
from tandemserve import Holding, Reservations, WorkerReservations, WorkerView

WORKER = WorkerView(
    worker_id="decode-0",
    role="decode",
    address="127.0.0.1:1",
    incarnation=1,
    state="ready",
    problem="",
    num_blocks=40,
    num_free_blocks=40,
    block_size=16,
    num_running=0,
    num_waiting=0,
    compatibility="x",
    admission="open",
    num_tasks=0,
    num_swap_blocks=8,
    num_free_swap_blocks=8,
)
BOOK = WorkerReservations("decode-0", 1, num_blocks=40, num_reserved_blocks=0)
NOTHING = Reservations(workers=(BOOK,), holdings=(), truncated=False)
HOLDING = Holding("task", "decode", "decode-0", "router-0", 2, "reserved")


def test_empty_pools_and_an_empty_ledger_are_clean() -> None:
    check = LeakCheck((WORKER,), NOTHING)
    assert check.is_clean
    assert check.line() == (
        "every KV block came back: decode-0 40/40 free; the ledger holds 0 reservations of 0 blocks"
    )


@pytest.mark.parametrize(
    "check",
    [
        LeakCheck((replace(WORKER, num_free_blocks=39),), NOTHING),
        LeakCheck((replace(WORKER, num_free_swap_blocks=7),), NOTHING),
        LeakCheck((replace(WORKER, state="lost"),), NOTHING),
        LeakCheck((replace(WORKER, num_blocks=0, num_free_blocks=0),), NOTHING),
        LeakCheck((), NOTHING),
        LeakCheck((WORKER,), replace(NOTHING, holdings=(HOLDING,))),
        LeakCheck((WORKER,), replace(NOTHING, workers=(replace(BOOK, num_reserved_blocks=2),))),
    ],
    ids=[
        "a block",
        "a block in host memory",
        "a worker",
        "a pool",
        "every worker",
        "a holding",
        "a promise",
    ],
)
def test_a_missing_block_or_a_forgotten_promise_is_seen(check: LeakCheck) -> None:
    assert not check.is_clean
    assert check.line().startswith("KV blocks are missing")
