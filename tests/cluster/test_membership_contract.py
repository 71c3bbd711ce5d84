"""Members come, go, restart and die; the same in memory and on a real server."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.errors import MembershipUnavailable, WorkerNameTaken
from cluster.member_records import member_text, parse_member
from cluster.membership import (
    Listing,
    MemberJoined,
    MemberLeft,
    MemberRecord,
    MemberRestarted,
    Membership,
    MembershipChange,
    MembershipTracker,
    RouterRecord,
    StoreLost,
    StoreRegained,
    WorkerRecord,
    watch,
)
from cluster.memory_membership import MemoryMembership
from cluster.process_identity import ProcessIdentity, is_known_dead, this_process
from cluster.redis_connection import RedisConnection, open_client
from cluster.redis_membership import RedisMembership
from cluster.registration import Registration
from runtime.clock import ManualClock, MonotonicClock
from scheduling.errors import StaleIncarnation
from scheduling.ids import Incarnation, RouterId, WorkerId

WORKER = WorkerRecord(
    worker_id=WorkerId("decode-0"),
    # One double cannot tell it from its successor.
    incarnation=Incarnation(2**60),
    role="decode",
    address="127.0.0.1:1234",
    num_blocks=8,
    block_size=16,
    compatibility="c",
    model="m",
    model_fingerprint="f",
    started_at_ns=1,
    process=this_process(),
)
ROUTER = RouterRecord(
    router_id=RouterId("router-0"),
    incarnation=Incarnation(1),
    address="127.0.0.1:1",
    model_fingerprint="f",
    started_at_ns=1,
    process=this_process(),
)
NEXT_LIFE = replace(WORKER, incarnation=Incarnation(2**60 + 1), address="127.0.0.1:99")


class Kind(NamedTuple):
    """One implementation; `connection` where there is a server."""

    membership: Membership
    connection: RedisConnection | None


@pytest.fixture(params=["memory", "server"])
def connection_of_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def kind(
    connection_of_kind: str, connection: RedisConnection, cluster_name: str
) -> AsyncIterator[Kind]:
    if connection_of_kind == "memory":
        yield Kind(MemoryMembership(MonotonicClock()), None)
    else:
        redis = RedisMembership(connection, cluster=cluster_name, timeout_s=20.0)
        yield Kind(redis, connection)


@pytest.fixture
def membership(kind: Kind) -> Membership:
    return kind.membership


def dead_process() -> ProcessIdentity:
    """A process of this host that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return replace(this_process(), pid=child.pid)


async def test_members_are_listed_from_join_to_leave(membership: Membership) -> None:
    await membership.register(WORKER, 60.0)
    await membership.register(ROUTER, 60.0)
    await membership.register(WORKER, 60.0)
    listing = await membership.listing()
    assert (listing.workers, listing.routers) == ((WORKER,), (ROUTER,))
    await membership.deregister(WORKER)
    await membership.deregister(WORKER)
    assert (await membership.listing()).members == (ROUTER,)


async def test_a_late_goodbye_does_not_remove_the_next_life(membership: Membership) -> None:
    await membership.register(WORKER, 60.0)
    await membership.deregister(WORKER)
    await membership.register(NEXT_LIFE, 60.0)
    await membership.deregister(WORKER)
    assert (await membership.listing()).members == (NEXT_LIFE,)


async def test_a_living_namesake_is_refused(membership: Membership) -> None:
    await membership.register(WORKER, 60.0)
    with pytest.raises(WorkerNameTaken, match=r"decode-0 is in use by process \d+"):
        await membership.register(NEXT_LIFE, 60.0)
    assert (await membership.listing()).members == (WORKER,)


async def test_a_namesake_on_another_machine_is_believed_to_live(membership: Membership) -> None:
    elsewhere = replace(dead_process(), host="elsewhere")
    await membership.register(replace(WORKER, process=elsewhere), 60.0)
    with pytest.raises(WorkerNameTaken, match="elsewhere"):
        await membership.register(NEXT_LIFE, 60.0)


async def test_a_dead_process_of_this_host_gives_its_name_up(membership: Membership) -> None:
    await membership.register(replace(WORKER, process=dead_process()), 60.0)
    await membership.register(NEXT_LIFE, 60.0)
    assert (await membership.listing()).members == (NEXT_LIFE,)


async def test_a_lease_that_ran_out_frees_the_name_for_good(membership: Membership) -> None:
    await membership.register(WORKER, 0.0)
    assert (await membership.listing()).members == ()
    await membership.register(NEXT_LIFE, 60.0)
    with pytest.raises(StaleIncarnation, match="stop this process"):
        await membership.register(WORKER, 60.0)
    assert (await membership.listing()).members == (NEXT_LIFE,)


async def test_incarnations_of_a_name_only_grow(membership: Membership) -> None:
    drawn = [await membership.next_incarnation("worker a") for _ in range(20)]
    assert drawn == sorted(set(drawn))
    # Microseconds since 2020: a store that forgot its counters still gives larger numbers.
    assert drawn[0] > 1_577_836_800_000_000


async def test_a_watcher_sees_changes_at_once(membership: Membership) -> None:
    # With this interval only an announcement can be in time for the limit.
    watching = watch(membership, MonotonicClock(), interval_s=1000.0, left_grace_s=0.0)
    async with asyncio.timeout(20.0), aclosing(watching) as changes:
        await membership.register(WORKER, 60.0)
        assert await anext(changes) == MemberJoined(WORKER)
        await membership.deregister(WORKER)
        assert await anext(changes) == MemberLeft(WORKER)
        await membership.register(NEXT_LIFE, 60.0)
        assert await anext(changes) == MemberJoined(NEXT_LIFE)


async def test_a_watcher_notices_a_lease_that_ran_out(membership: Membership) -> None:
    watching = watch(membership, MonotonicClock(), interval_s=0.02, left_grace_s=0.0)
    async with asyncio.timeout(20.0), aclosing(watching) as changes:
        await membership.register(WORKER, 60.0)
        assert await anext(changes) == MemberJoined(WORKER)
        # Renewed for an instant, so that it cannot run out before it was seen.
        await membership.register(WORKER, 0.05)
        assert await anext(changes) == MemberLeft(WORKER)


async def test_a_registration_keeps_its_lease_and_leaves_at_the_end(
    membership: Membership,
) -> None:
    renewed = asyncio.Event()

    async def after_renewal() -> None:
        renewed.set()

    registration = Registration(membership, WORKER, ttl_s=1.5, after_renewal=after_renewal)
    await registration.start()
    async with asyncio.timeout(20.0):
        for _ in range(2):
            renewed.clear()
            await renewed.wait()
    assert (await membership.listing()).members == (WORKER,)
    await registration.stop()
    assert (await membership.listing()).members == ()
    assert await registration.wait_lost() is None


async def test_a_registration_tells_that_its_name_was_lost(membership: Membership) -> None:
    mortal = replace(WORKER, process=dead_process())
    registration = Registration(membership, mortal, ttl_s=0.3)
    await registration.start()
    await membership.register(NEXT_LIFE, 60.0)
    async with asyncio.timeout(20.0):
        assert isinstance(await registration.wait_lost(), StaleIncarnation)
    await registration.stop()
    assert (await membership.listing()).members == (NEXT_LIFE,)


async def test_an_absent_store_is_a_named_error_and_ends_nothing(tmp_path: Path) -> None:
    nowhere = RedisConnection(open_client(f"unix://{tmp_path}/no.sock"), "no.sock", "none")
    membership = RedisMembership(nowhere)
    with pytest.raises(MembershipUnavailable, match="keep the last known members"):
        await membership.listing()
    watching = watch(membership, MonotonicClock(), interval_s=0.01, left_grace_s=0.0)
    async with asyncio.timeout(20.0), aclosing(watching) as changes:
        assert isinstance(await anext(changes), StoreLost)
    await nowhere.close()


def observed(
    tracker: MembershipTracker, clock: ManualClock, *members: MemberRecord, epoch: str = "a"
) -> list[MembershipChange]:
    return tracker.observe(Listing(members, epoch), clock.now())


def test_a_new_life_under_one_name_is_a_restart() -> None:
    tracker, clock = MembershipTracker(5.0), ManualClock()
    assert observed(tracker, clock, WORKER) == [MemberJoined(WORKER)]
    assert observed(tracker, clock, NEXT_LIFE) == [MemberRestarted(NEXT_LIFE, WORKER)]


def test_members_get_time_to_return_after_the_store_was_away() -> None:
    tracker, clock = MembershipTracker(5.0), ManualClock()
    observed(tracker, clock, WORKER, ROUTER)
    assert tracker.unreachable("silence") == [StoreLost("silence")]
    assert tracker.unreachable("silence") == []
    assert observed(tracker, clock, ROUTER) == [StoreRegained()]
    clock.advance(4.9)
    assert observed(tracker, clock, ROUTER) == []
    clock.advance(0.1)
    assert observed(tracker, clock, ROUTER) == [MemberLeft(WORKER)]


def test_a_store_that_forgot_everything_ends_nobody_at_once() -> None:
    tracker, clock = MembershipTracker(5.0), ManualClock()
    observed(tracker, clock, WORKER)
    assert observed(tracker, clock, epoch="b") == [StoreRegained()]
    assert observed(tracker, clock, WORKER, epoch="b") == []


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 6.0])
def test_nobody_leaves_because_the_clock_of_the_store_was_set(jump_s: float) -> None:
    tracker, clock = MembershipTracker(5.0), ManualClock(100.0)

    def look(*members: MemberRecord, ahead_s: float) -> list[MembershipChange]:
        return tracker.observe(Listing(members, "a", clock.now() + ahead_s), clock.now())

    look(WORKER, ROUTER, ahead_s=7.0)
    clock.advance(1.0)
    # All leases have ended by the new clock; whoever lives renews its own.
    assert look(ahead_s=7.0 + jump_s) == []
    clock.advance(2.0)
    assert look(WORKER, ahead_s=7.0 + jump_s) == []
    clock.advance(3.0)
    assert look(WORKER, ahead_s=7.0 + jump_s) == [MemberLeft(ROUTER)]


def test_a_slow_answer_is_no_set_clock() -> None:
    tracker, clock = MembershipTracker(5.0), ManualClock(100.0)
    tracker.observe(Listing((WORKER,), "a", 50.0), clock.now())
    clock.advance(2.0)
    assert tracker.observe(Listing((), "a", 51.0), clock.now()) == [MemberLeft(WORKER)]


def test_records_survive_the_store_and_unknown_fields() -> None:
    for record in (WORKER, ROUTER):
        assert parse_member(member_text(record)) == record
    assert parse_member(member_text(WORKER)[:-1] + ',"later":1}') == WORKER
    for text in ("", "{}", "[]", '{"kind":"worker"}', '{"kind":"printer"}'):
        assert parse_member(text) is None


def test_only_an_ended_process_of_this_host_is_known_to_be_dead() -> None:
    me = this_process()
    assert not is_known_dead(me)
    assert is_known_dead(dead_process())
    assert is_known_dead(replace(me, created_at_s=me.created_at_s - 100.0))
    assert not is_known_dead(replace(dead_process(), host="elsewhere"))
