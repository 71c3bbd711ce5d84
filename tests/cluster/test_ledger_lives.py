"""What every ledger promises when routers and workers die, return, or fall silent."""

from typing import Protocol

import pytest

from cluster.errors import HoldingGone, RouterLeaseLapsed
from cluster.ledger import (
    Claim,
    Grant,
    Growth,
    Ledger,
    LedgerSnapshot,
    Refusal,
    Release,
    Renewal,
    ReserveRequest,
    RouterLife,
    WorkerLife,
)
from cluster.ledger_audit import check_invariants, read_whole
from runtime.clock import ManualClock
from scheduling.errors import StaleIncarnation
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

# Neighbours that one double cannot tell apart.
BIG = 2**62


class Stage(Protocol):
    """See conftest.py."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def clock(self) -> ManualClock: ...


def router_life(incarnation: int = BIG, name: str = "router-0") -> RouterLife:
    return RouterLife(RouterId(name), Incarnation(incarnation))


def worker_life(incarnation: int = BIG, name: str = "decode-0") -> WorkerLife:
    return WorkerLife(WorkerId(name), Incarnation(incarnation))


def want(name: str, *workers: WorkerLife, attempt: int = 1) -> ReserveRequest:
    claim = Claim(TaskId(name), "decode", attempt)
    return ReserveRequest(claim, workers or (worker_life(),), 4)


async def open_books(stage: Stage) -> None:
    await stage.ledger.set_capacity(worker_life(), 10)
    await stage.ledger.renew(router_life(), 30.0)


async def books(stage: Stage) -> LedgerSnapshot:
    snapshot = await read_whole(stage.ledger)
    check_invariants(snapshot)
    return snapshot


async def num_reserved(stage: Stage) -> int:
    return sum(book.num_reserved for book in (await books(stage)).workers)


async def test_a_newer_worker_life_starts_empty(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    await stage.ledger.set_capacity(worker_life(BIG + 1), 20)
    assert (await books(stage)).holdings == ()
    with pytest.raises(HoldingGone):
        await stage.ledger.extend(router_life(), Growth(want("a").claim, 1, 1))


async def test_a_stale_worker_life_changes_nothing(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.set_capacity(worker_life(BIG + 1), 20)
    await stage.ledger.reserve(router_life(), want("a", worker_life(BIG + 1)))
    before = await books(stage)
    with pytest.raises(StaleIncarnation, match="new incarnation"):
        await stage.ledger.set_capacity(worker_life(BIG), 99)
    assert await stage.ledger.worker_lost(worker_life(BIG)) == ()
    assert await stage.ledger.worker_lost(worker_life(BIG + 2)) == ()
    assert await stage.ledger.reserve(router_life(), want("b")) == Refusal(())
    assert await books(stage) == before


async def test_a_lost_worker_frees_the_holdings_of_all_routers(stage: Stage) -> None:
    await open_books(stage)
    other = router_life(name="router-1")
    await stage.ledger.renew(other, 30.0)
    await stage.ledger.reserve(router_life(), want("a"))
    await stage.ledger.reserve(other, want("b"))
    freed = await stage.ledger.worker_lost(worker_life())
    assert [(h.claim.task_id, h.router) for h in freed] == [("a", router_life()), ("b", other)]
    assert await stage.ledger.worker_lost(worker_life()) == ()
    assert await stage.ledger.reserve(router_life(), want("a", attempt=2)) == Refusal(())
    with pytest.raises(StaleIncarnation):
        await stage.ledger.set_capacity(worker_life(), 10)
    await stage.ledger.set_capacity(worker_life(BIG + 1), 10)
    assert await num_reserved(stage) == 0


async def test_a_newer_router_life_frees_what_the_older_held(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    assert await stage.ledger.renew(router_life(BIG + 1), 30.0) == Renewal("new", 4)
    assert await stage.ledger.renew(router_life(BIG + 1), 30.0) == Renewal("renewed", 0)
    assert await num_reserved(stage) == 0


async def test_a_stale_router_life_changes_nothing(stage: Stage) -> None:
    await open_books(stage)
    old, new = router_life(), router_life(BIG + 1)
    await stage.ledger.renew(new, 30.0)
    await stage.ledger.reserve(new, want("a"))
    before = await books(stage)
    ledger, claim = stage.ledger, want("a").claim
    for operation in (
        lambda: ledger.renew(old, 90.0),
        lambda: ledger.reserve(old, want("a", attempt=2)),
        lambda: ledger.reserve(old, want("b")),
        lambda: ledger.extend(old, Growth(claim, 1, 1)),
        lambda: ledger.commit(old, claim, 1, 1),
        lambda: ledger.transfer(old, claim.task_id, 1),
        lambda: ledger.release(old, Release(claim.task_id, 9)),
        lambda: ledger.release_many(old, [Release(claim.task_id, 9)]),
    ):
        with pytest.raises(StaleIncarnation, match="stop this process"):
            await operation()
    assert await books(stage) == before
    assert await ledger.reserve(new, want("b")) == Grant(worker_life(), 4)


async def test_an_expired_lease_frees_everything_at_the_next_sweep(stage: Stage) -> None:
    await open_books(stage)
    other = router_life(name="router-1")
    await stage.ledger.renew(other, 300.0)
    await stage.ledger.reserve(router_life(), want("a"))
    await stage.ledger.reserve(other, want("b"))
    assert (await stage.ledger.sweep()).freed == ()
    stage.clock.advance(30.0)
    with pytest.raises(RouterLeaseLapsed):
        await stage.ledger.reserve(router_life(), want("c"))
    swept = await stage.ledger.sweep()
    assert [h.claim.task_id for h in swept.freed] == ["a"]
    assert not swept.has_more
    assert await num_reserved(stage) == 4
    assert await stage.ledger.renew(router_life(), 30.0) == Renewal("lapsed", 0)
    assert isinstance(await stage.ledger.reserve(router_life(), want("a")), Grant)


async def test_a_renewal_in_time_keeps_all_holdings(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    for _ in range(3):
        stage.clock.advance(29.0)
        assert await stage.ledger.renew(router_life(), 30.0) == Renewal("renewed", 0)
        assert (await stage.ledger.sweep()).freed == ()
    assert await num_reserved(stage) == 4


async def test_a_late_renewal_before_the_sweep_keeps_all_holdings(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    stage.clock.advance(31.0)
    assert await stage.ledger.renew(router_life(), 30.0) == Renewal("renewed", 0)
    assert (await stage.ledger.sweep()).freed == ()
    assert await num_reserved(stage) == 4


async def test_a_router_that_leaves_gives_its_lease_back(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    await stage.ledger.renew(router_life(), 0.0)
    assert len((await stage.ledger.sweep()).freed) == 1
    assert await num_reserved(stage) == 0


async def test_a_silent_worker_takes_nothing_and_is_lost_at_the_sweep(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.set_capacity(worker_life(), 10, ttl_s=5.0)
    await stage.ledger.reserve(router_life(), want("a"))
    stage.clock.advance(4.0)
    await stage.ledger.set_capacity(worker_life(), 10, ttl_s=5.0)
    stage.clock.advance(4.0)
    assert (await stage.ledger.sweep()).freed == ()
    stage.clock.advance(1.0)
    assert await stage.ledger.reserve(router_life(), want("b")) == Refusal(())
    assert await stage.ledger.extend(router_life(), Growth(want("a").claim, 1, 1)) == Refusal(())
    assert [h.claim.task_id for h in (await stage.ledger.sweep()).freed] == ["a"]
    with pytest.raises(StaleIncarnation):
        await stage.ledger.set_capacity(worker_life(), 10, ttl_s=5.0)
    assert [book.is_lost for book in (await books(stage)).workers] == [True]


async def test_a_sweep_stops_at_its_bound_and_says_so(stage: Stage) -> None:
    await stage.ledger.set_capacity(worker_life(), 100, ttl_s=5.0)
    await stage.ledger.renew(router_life(), 5.0)
    for i in range(5):
        await stage.ledger.reserve(router_life(), want(f"{i}"))
    stage.clock.advance(5.0)
    sizes, more = [], True
    while more:
        swept = await stage.ledger.sweep(max_holdings=2)
        sizes.append(len(swept.freed))
        more = swept.has_more
        await books(stage)
    assert sizes == [2, 2, 1]


async def test_dead_names_are_forgotten_in_the_end(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.worker_lost(worker_life())
    stage.clock.advance(31.0)
    await stage.ledger.sweep()
    assert len((await books(stage)).workers) == len((await books(stage)).routers) == 1
    stage.clock.advance(3600.0)
    await stage.ledger.sweep()
    snapshot = await books(stage)
    assert (snapshot.workers, snapshot.routers) == ((), ())


async def test_a_clock_set_forward_frees_what_lives_until_it_is_booked_again(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    stage.clock.jump(86_400.0)
    # Another router's sweep came before this one's renewal.
    assert [h.claim.task_id for h in (await stage.ledger.sweep()).freed] == ["a"]
    with pytest.raises(HoldingGone):
        await stage.ledger.commit(router_life(), want("a").claim, 4, 1)
    assert (await stage.ledger.renew(router_life(BIG + 1), 30.0)).status == "new"
    assert await stage.ledger.reserve(router_life(BIG + 1), want("a")) == Grant(worker_life(), 4)
    assert (await stage.ledger.sweep()).freed == ()
    assert await num_reserved(stage) == 4


async def test_a_clock_set_forward_is_not_noticed_where_the_renewal_comes_first(
    stage: Stage,
) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    stage.clock.jump(86_400.0)
    assert await stage.ledger.renew(router_life(), 30.0) == Renewal("renewed", 0)
    assert (await stage.ledger.sweep()).freed == ()
    assert await num_reserved(stage) == 4


async def test_a_clock_set_back_takes_nothing_from_those_who_live(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(router_life(), want("a"))
    stage.clock.jump(-500.0)
    assert (await stage.ledger.sweep()).freed == ()
    assert await stage.ledger.reserve(router_life(), want("b")) == Grant(worker_life(), 4)
    assert await stage.ledger.renew(router_life(), 30.0) == Renewal("renewed", 0)
    # From the renewal on, the lease runs by the new time.
    stage.clock.advance(30.0)
    assert len((await stage.ledger.sweep()).freed) == 2


async def test_a_clock_set_back_keeps_what_the_dead_held_until_it_is_made_up_for(
    stage: Stage,
) -> None:
    await open_books(stage)
    other = router_life(name="router-1")
    await stage.ledger.renew(other, 30.0)
    await stage.ledger.reserve(router_life(), want("a"))
    await stage.ledger.reserve(other, want("b"))
    stage.clock.jump(-500.0)
    stage.clock.advance(500.0)
    assert (await stage.ledger.sweep()).freed == ()
    # Its next life does not have to wait for that.
    assert await stage.ledger.renew(router_life(BIG + 1), 30.0) == Renewal("new", 4)
    stage.clock.advance(30.0)
    assert [h.router for h in (await stage.ledger.sweep()).freed] == [other]
