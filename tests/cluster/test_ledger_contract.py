"""What every ledger promises about claims, shares and repetition."""

from typing import Protocol

import pytest

from cluster.errors import (
    CapacityInUse,
    ClaimHeldElsewhere,
    HoldingGone,
    RouterLeaseLapsed,
    StaleAttempt,
)
from cluster.ledger import (
    LEGS,
    Alternative,
    Claim,
    Grant,
    Growth,
    Holding,
    Ledger,
    Leg,
    Refusal,
    Release,
    ReserveRequest,
    RouterLife,
    Share,
    Shares,
    WorkerLife,
)
from cluster.ledger_audit import check_invariants, read_whole
from runtime.clock import ManualClock
from scheduling.errors import InvalidRequest
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

TASK = TaskId("request/0")


class Stage(Protocol):
    """See conftest.py."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def clock(self) -> ManualClock: ...
    @property
    def router(self) -> RouterLife: ...
    @property
    def worker(self) -> WorkerLife: ...


def worker_named(name: str, incarnation: int = 1) -> WorkerLife:
    return WorkerLife(WorkerId(name), Incarnation(incarnation))


def want(
    *workers: WorkerLife,
    num_blocks: int = 4,
    task_id: TaskId = TASK,
    leg: Leg = "decode",
    attempt: int = 1,
    share: Share = "general",
    offline: bool = False,
) -> ReserveRequest:
    return ReserveRequest(Claim(task_id, leg, attempt), workers, num_blocks, share, offline)


async def open_books(stage: Stage, num_blocks: int = 10, shares: Shares | None = None) -> None:
    await stage.ledger.set_capacity(stage.worker, num_blocks, shares or Shares())
    await stage.ledger.renew(stage.router, 30.0)


async def num_reserved(stage: Stage) -> int:
    snapshot = await read_whole(stage.ledger)
    check_invariants(snapshot)
    return sum(book.num_reserved for book in snapshot.workers)


async def test_the_first_preference_with_room_is_taken(stage: Stage) -> None:
    await open_books(stage, num_blocks=3)
    roomy, spare = worker_named("decode-1"), worker_named("decode-2")
    await stage.ledger.set_capacity(roomy, 10)
    await stage.ledger.set_capacity(spare, 10)
    outcome = await stage.ledger.reserve(stage.router, want(stage.worker, roomy, spare))
    assert outcome == Grant(roomy, 4)
    assert await num_reserved(stage) == 4


async def test_a_refusal_lists_live_workers_in_the_callers_order(stage: Stage) -> None:
    await open_books(stage, num_blocks=3)
    other, gone = worker_named("decode-1"), worker_named("decode-9")
    await stage.ledger.set_capacity(other, 2)
    old = worker_named("decode-1", 0)
    outcome = await stage.ledger.reserve(stage.router, want(other, gone, old, stage.worker))
    assert outcome == Refusal((Alternative(other, 2), Alternative(stage.worker, 3)))
    assert await num_reserved(stage) == 0


async def test_repeating_a_reservation_returns_the_same_grant(stage: Stage) -> None:
    await open_books(stage)
    other = worker_named("decode-1")
    await stage.ledger.set_capacity(other, 10)
    first = await stage.ledger.reserve(stage.router, want(stage.worker))
    again = await stage.ledger.reserve(stage.router, want(other, num_blocks=9))
    assert first == again == Grant(stage.worker, 4)
    assert await num_reserved(stage) == 4


async def test_the_legs_of_a_task_are_held_apart(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker, leg="prefill", num_blocks=3))
    await stage.ledger.reserve(stage.router, want(stage.worker, leg="decode", num_blocks=4))
    assert await num_reserved(stage) == 7
    assert await stage.ledger.release(stage.router, Release(TASK, 1, "prefill")) == 3
    assert await num_reserved(stage) == 4
    assert await stage.ledger.release(stage.router, Release(TASK, 1)) == 4


@pytest.mark.parametrize(("share", "limit"), [("general", 5), ("prompt", 8), ("growth", 10)])
async def test_a_share_may_fill_the_worker_up_to_its_level(
    stage: Stage, share: Share, limit: int
) -> None:
    await open_books(stage, shares=Shares(prompt_reserve=3, growth_reserve=2))
    too_many = want(stage.worker, num_blocks=limit + 1, share=share)
    refusal = await stage.ledger.reserve(stage.router, too_many)
    assert refusal == Refusal((Alternative(stage.worker, limit),))
    fits = want(stage.worker, num_blocks=limit, share=share)
    assert await stage.ledger.reserve(stage.router, fits) == Grant(stage.worker, limit)


async def test_what_one_share_took_counts_for_all(stage: Stage) -> None:
    await open_books(stage, shares=Shares(growth_reserve=4))
    await stage.ledger.reserve(stage.router, want(stage.worker, num_blocks=7, share="growth"))
    request = want(stage.worker, num_blocks=1, task_id=TaskId("b/0"))
    refusal = await stage.ledger.reserve(stage.router, request)
    assert refusal == Refusal((Alternative(stage.worker, 0),))


async def test_offline_holdings_stay_out_of_the_online_threshold(stage: Stage) -> None:
    await open_books(stage, shares=Shares(online_threshold=6))
    offline = want(stage.worker, num_blocks=3, offline=True)
    await stage.ledger.reserve(stage.router, offline)
    more = want(stage.worker, num_blocks=2, offline=True, task_id=TaskId("b/0"))
    refusal = await stage.ledger.reserve(stage.router, more)
    assert refusal == Refusal((Alternative(stage.worker, 1),))
    online = want(stage.worker, num_blocks=7, task_id=TaskId("c/0"))
    assert await stage.ledger.reserve(stage.router, online) == Grant(stage.worker, 7)


async def test_extending_adds_once_for_each_sequence_number(stage: Stage) -> None:
    await open_books(stage, shares=Shares(growth_reserve=6))
    claim = want(stage.worker).claim
    await stage.ledger.reserve(stage.router, want(stage.worker))
    for _ in range(2):
        grant = await stage.ledger.extend(stage.router, Growth(claim, 5, sequence_number=1))
        assert grant == Grant(stage.worker, 9)
    refused = Growth(claim, 2, sequence_number=2)
    refusal = Refusal((Alternative(stage.worker, 1),))
    assert await stage.ledger.extend(stage.router, refused) == refusal
    assert await num_reserved(stage) == 9


async def test_a_refused_extension_stays_refused_when_room_appears(stage: Stage) -> None:
    await open_books(stage)
    claim = want(stage.worker).claim
    other = TaskId("other/0")
    await stage.ledger.reserve(stage.router, want(stage.worker))
    await stage.ledger.reserve(stage.router, want(stage.worker, task_id=other, num_blocks=6))
    late = Growth(claim, 3, sequence_number=1)
    assert isinstance(await stage.ledger.extend(stage.router, late), Refusal)
    await stage.ledger.release(stage.router, Release(other, 1))
    assert isinstance(await stage.ledger.extend(stage.router, late), Refusal)
    again = Growth(claim, 3, sequence_number=2)
    assert await stage.ledger.extend(stage.router, again) == Grant(stage.worker, 7)


async def test_a_commit_gives_back_what_is_not_used(stage: Stage) -> None:
    await open_books(stage)
    claim = want(stage.worker).claim
    await stage.ledger.reserve(stage.router, want(stage.worker))
    await stage.ledger.extend(stage.router, Growth(claim, 3, sequence_number=1))
    for _ in range(2):
        grant = await stage.ledger.commit(stage.router, claim, 5, 2)
        assert grant == Grant(stage.worker, 5)
    snapshot = await read_whole(stage.ledger)
    check_invariants(snapshot)
    assert snapshot.holdings[0].state == "committed"
    assert snapshot.workers[0].num_by_share == {"general": 4, "prompt": 0, "growth": 1}


async def test_a_late_commit_does_not_undo_a_later_extension(stage: Stage) -> None:
    await open_books(stage)
    claim = want(stage.worker).claim
    await stage.ledger.reserve(stage.router, want(stage.worker))
    await stage.ledger.commit(stage.router, claim, 2, 1)
    await stage.ledger.extend(stage.router, Growth(claim, 3, sequence_number=2))
    with pytest.raises(StaleAttempt):
        await stage.ledger.commit(stage.router, claim, 2, 1)
    assert await num_reserved(stage) == 5


async def test_committing_more_than_is_held_is_refused(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker))
    with pytest.raises(InvalidRequest, match="extend first"):
        await stage.ledger.commit(stage.router, want(stage.worker).claim, 5, 1)
    assert await num_reserved(stage) == 4


async def test_a_transfer_frees_prefill_and_commits_decode(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker, leg="prefill", num_blocks=3))
    await stage.ledger.reserve(stage.router, want(stage.worker, num_blocks=5))
    for _ in range(2):
        grant = await stage.ledger.transfer(stage.router, TASK, 1)
        assert grant == Grant(stage.worker, 5)
    snapshot = await read_whole(stage.ledger)
    assert [(h.claim.leg, h.state) for h in snapshot.holdings] == [("decode", "committed")]
    late = want(stage.worker, leg="prefill", num_blocks=3)
    with pytest.raises(StaleAttempt):
        await stage.ledger.reserve(stage.router, late)


async def test_a_transfer_without_a_decode_holding_keeps_prefill(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker, leg="prefill", num_blocks=3))
    with pytest.raises(HoldingGone):
        await stage.ledger.transfer(stage.router, TASK, 1)
    assert await num_reserved(stage) == 3


async def test_releasing_twice_is_harmless(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker))
    assert await stage.ledger.release(stage.router, Release(TASK, 1, "decode")) == 4
    assert await stage.ledger.release(stage.router, Release(TASK, 1, "decode")) == 0
    assert await stage.ledger.release(stage.router, Release(TaskId("never/0"), 1)) == 0
    assert await num_reserved(stage) == 0


@pytest.mark.parametrize("leg", ["decode", None])
async def test_a_reservation_that_arrives_after_its_release_is_void(
    stage: Stage, leg: Leg | None
) -> None:
    await open_books(stage)
    await stage.ledger.release(stage.router, Release(TASK, 1, leg))
    with pytest.raises(StaleAttempt):
        await stage.ledger.reserve(stage.router, want(stage.worker))
    assert await num_reserved(stage) == 0
    second = want(stage.worker, attempt=2)
    assert await stage.ledger.reserve(stage.router, second) == Grant(stage.worker, 4)


async def test_a_late_release_does_not_end_the_next_attempt(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker, attempt=2))
    assert await stage.ledger.release(stage.router, Release(TASK, 1)) == 0
    assert await num_reserved(stage) == 4


async def test_the_next_attempt_gives_up_what_the_last_one_held(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker, num_blocks=9))
    request = want(stage.worker, num_blocks=8, attempt=2)
    assert await stage.ledger.reserve(stage.router, request) == Grant(stage.worker, 8)
    with pytest.raises(StaleAttempt):
        await stage.ledger.reserve(stage.router, want(stage.worker, num_blocks=9))
    assert await num_reserved(stage) == 8


async def test_the_door_of_an_ended_attempt_opens_after_a_while(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.renew(stage.router, 1000.0)
    await stage.ledger.release(stage.router, Release(TASK, 1))
    stage.clock.advance(61.0)
    await stage.ledger.sweep()
    assert isinstance(await stage.ledger.reserve(stage.router, want(stage.worker)), Grant)


async def test_two_routers_cannot_hold_one_task(stage: Stage) -> None:
    await open_books(stage)
    other = RouterLife(RouterId("router-1"), Incarnation(1))
    await stage.ledger.renew(other, 30.0)
    await stage.ledger.reserve(stage.router, want(stage.worker))
    with pytest.raises(ClaimHeldElsewhere, match="router-0"):
        await stage.ledger.reserve(other, want(stage.worker))
    assert await stage.ledger.release(other, Release(TASK, 1)) == 0
    with pytest.raises(HoldingGone):
        await stage.ledger.commit(other, want(stage.worker).claim, 1, 1)
    assert await num_reserved(stage) == 4


async def test_many_requests_travel_together(stage: Stage) -> None:
    await open_books(stage)
    tasks = [TaskId(f"{i}/0") for i in range(4)]
    requests = [want(stage.worker, task_id=task, num_blocks=3) for task in tasks]
    outcomes = await stage.ledger.reserve_many(stage.router, requests)
    assert [type(outcome) for outcome in outcomes] == [Grant, Grant, Grant, Refusal]
    releases = [Release(task, 1) for task in tasks]
    assert await stage.ledger.release_many(stage.router, releases) == 9
    assert await stage.ledger.release_many(stage.router, releases) == 0
    assert await stage.ledger.reserve_many(stage.router, []) == []
    with pytest.raises(StaleAttempt):
        await stage.ledger.reserve_many(stage.router, requests)


async def test_kv_that_arrives_together_is_booked_together(stage: Stage) -> None:
    await open_books(stage)
    tasks = [TaskId(f"{i}/0") for i in range(3)]
    legs_by_task: tuple[tuple[Leg, ...], ...] = (("decode",), ("prefill",), LEGS)
    for task, legs in zip(tasks, legs_by_task, strict=True):
        for leg in legs:
            request = want(stage.worker, task_id=task, leg=leg, num_blocks=2)
            await stage.ledger.reserve(stage.router, request)
    assert await num_reserved(stage) == 8
    with pytest.raises(HoldingGone):
        await stage.ledger.transfer_many(stage.router, [(task, 1) for task in tasks])
    assert await num_reserved(stage) == 6, "one that is gone keeps no other from its transfer"
    arrived = [(tasks[0], 1), (tasks[2], 1)]
    assert await stage.ledger.transfer_many(stage.router, arrived) == [Grant(stage.worker, 2)] * 2
    assert await stage.ledger.transfer_many(stage.router, []) == []


async def test_a_router_without_a_lease_reserves_nothing(stage: Stage) -> None:
    await stage.ledger.set_capacity(stage.worker, 10)
    with pytest.raises(RouterLeaseLapsed, match="renew"):
        await stage.ledger.reserve(stage.router, want(stage.worker))
    assert await num_reserved(stage) == 0


async def test_capacity_does_not_fall_below_what_is_reserved(stage: Stage) -> None:
    await open_books(stage)
    await stage.ledger.reserve(stage.router, want(stage.worker))
    with pytest.raises(CapacityInUse, match="4 are reserved"):
        await stage.ledger.set_capacity(stage.worker, 3)
    await stage.ledger.set_capacity(stage.worker, 4)
    assert await num_reserved(stage) == 4


@pytest.mark.parametrize(
    "text", ["", " ", "a b|c/0", "8:decode-0:x/1", "line\nbreak", "nul\0", "é中/0", "(", "%d"]
)
async def test_ids_may_hold_any_text(stage: Stage, text: str) -> None:
    router = RouterLife(RouterId(text + "r"), Incarnation(2**63 - 1))
    worker = WorkerLife(WorkerId(text), Incarnation(2**62 + 1))
    await stage.ledger.set_capacity(worker, 10)
    await stage.ledger.set_capacity(worker_named(text + ":"), 10)
    await stage.ledger.renew(router, 30.0)
    task = TaskId(text)
    request = want(worker, task_id=task)
    assert await stage.ledger.reserve(router, request) == Grant(worker, 4)
    # Rewrites the record: the incarnations, which no double holds exactly, must come through.
    assert await stage.ledger.commit(router, request.claim, 3, 1) == Grant(worker, 3)
    snapshot = await read_whole(stage.ledger)
    check_invariants(snapshot)
    holding = snapshot.holdings[0]
    assert (holding.claim.task_id, holding.router, holding.worker) == (task, router, worker)
    assert await stage.ledger.worker_lost(worker) == snapshot.holdings


async def test_a_snapshot_comes_in_pages(stage: Stage) -> None:
    await open_books(stage)
    second = worker_named("decode-1")
    await stage.ledger.set_capacity(second, 10)
    for i in range(7):
        on = stage.worker if i % 2 else second
        await stage.ledger.reserve(stage.router, want(on, num_blocks=1, task_id=TaskId(f"{i}/0")))
    whole = await read_whole(stage.ledger)
    paged: list[Holding] = []
    page: str | None = None
    while True:
        snapshot = await stage.ledger.snapshot(page, max_holdings=3)
        assert len(snapshot.holdings) <= 3
        paged += snapshot.holdings
        page = snapshot.next_page
        if page is None:
            break
    assert tuple(paged) == whole.holdings
    assert len(paged) == 7


@pytest.mark.parametrize("num_blocks", [0, -1, 2**53])
async def test_impossible_numbers_are_refused(stage: Stage, num_blocks: int) -> None:
    await open_books(stage)
    with pytest.raises(InvalidRequest):
        await stage.ledger.reserve(stage.router, want(stage.worker, num_blocks=num_blocks))
    with pytest.raises(InvalidRequest):
        await stage.ledger.renew(stage.router, float("nan"))
    with pytest.raises(InvalidRequest):
        await stage.ledger.set_capacity(stage.worker, 4, Shares(3, 2))
    assert await num_reserved(stage) == 0
