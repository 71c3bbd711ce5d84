"""What every ledger promises about calls whose answers nobody has waited for."""

import asyncio
from typing import Protocol

from cluster.ledger import Claim, Grant, Ledger, Release, ReserveRequest, RouterLife, WorkerLife
from cluster.ledger_audit import check_invariants, read_whole
from scheduling.ids import TaskId

NUM_TASKS = 50


class Stage(Protocol):
    """See conftest.py."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def router(self) -> RouterLife: ...
    @property
    def worker(self) -> WorkerLife: ...


def want(stage: Stage, number: int) -> ReserveRequest:
    return ReserveRequest(Claim(TaskId(f"{number}/0"), "decode", number), (stage.worker,), 8)


async def test_what_one_call_frees_the_next_may_take_though_nobody_waited(stage: Stage) -> None:
    """Each task takes the whole worker, so a single one out of turn would be refused."""
    await stage.ledger.set_capacity(stage.worker, 8)
    await stage.ledger.renew(stage.router, 30.0)
    assert isinstance(await stage.ledger.reserve(stage.router, want(stage, 0)), Grant)
    reserving: list[asyncio.Task[object]] = []
    releasing: list[asyncio.Task[object]] = []
    for number in range(1, NUM_TASKS):
        release = Release(TaskId(f"{number - 1}/0"), number - 1)
        releasing.append(asyncio.create_task(stage.ledger.release(stage.router, release)))
        reserve = stage.ledger.reserve(stage.router, want(stage, number))
        reserving.append(asyncio.create_task(reserve))
    assert await asyncio.gather(*releasing) == [8] * (NUM_TASKS - 1)
    assert await asyncio.gather(*reserving) == [Grant(stage.worker, 8)] * (NUM_TASKS - 1)
    snapshot = await read_whole(stage.ledger)
    check_invariants(snapshot)
    (book,) = snapshot.workers
    assert book.num_reserved == 8
