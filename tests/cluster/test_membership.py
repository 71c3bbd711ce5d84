"""Workers come, go, restart and die; routers see it."""

import asyncio
import os
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import MembershipUnavailable, WorkerNameTaken
from cluster.membership import Membership, MemoryMembership, WorkerRecord
from cluster.redis_connection import RedisConnection, open_client
from cluster.redis_membership import RedisMembership
from runtime.host import process_space
from scheduling.ids import Incarnation, WorkerId

RECORD = WorkerRecord(
    worker_id=WorkerId("decode-0"),
    # Larger than a double holds exactly: it must survive the script.
    incarnation=Incarnation(2**60 + 1),
    role="decode",
    address="127.0.0.1:1234",
    num_blocks=8,
    block_size=16,
    compatibility="c",
    model_name="m",
    model_fingerprint="f",
    host=process_space(),
    pid=os.getpid(),
)
RESTARTED = replace(RECORD, incarnation=Incarnation(2**60 + 2), address="127.0.0.1:99")


@pytest.fixture(params=["memory", "server"])
def membership(request: pytest.FixtureRequest, cluster_name: str) -> Membership:
    if request.param == "memory":
        return MemoryMembership()
    connection: RedisConnection = request.getfixturevalue("connection")
    return RedisMembership(connection, cluster=cluster_name)


@pytest.fixture
def shared(connection: RedisConnection, cluster_name: str) -> RedisMembership:
    return RedisMembership(connection, cluster=cluster_name)


async def test_a_worker_is_listed_from_join_to_leave(membership: Membership) -> None:
    other = replace(RECORD, worker_id=WorkerId("decode-1"))
    await membership.join(other, 60)
    await membership.join(RECORD, 60)
    await membership.join(RECORD, 60)
    assert await membership.workers() == (RECORD, other)
    await membership.leave(RECORD)
    await membership.leave(RECORD)
    assert await membership.workers() == (other,)


async def test_leaving_late_does_not_remove_the_next_life(membership: Membership) -> None:
    await membership.join(RECORD, 60)
    await membership.leave(RECORD)
    await membership.join(RESTARTED, 60)
    await membership.leave(RECORD)
    assert await membership.workers() == (RESTARTED,)


async def test_a_watcher_sees_joins_and_leaves_at_once(membership: Membership) -> None:
    # With this pause only a notification can be in time for the test's limit.
    async with aclosing(membership.watch(poll_s=1000)) as seen:
        assert await anext(seen) == ()
        await membership.join(RECORD, 60)
        assert await anext(seen) == (RECORD,)
        await membership.leave(RECORD)
        assert await anext(seen) == ()


async def test_a_living_namesake_is_refused(shared: RedisMembership) -> None:
    await shared.join(RECORD, 60)
    with pytest.raises(WorkerNameTaken, match="decode-0 is in use by process"):
        await shared.join(RESTARTED, 60)
    assert await shared.workers() == (RECORD,)


async def test_a_namesake_of_another_machine_is_believed_to_live(shared: RedisMembership) -> None:
    await shared.join(replace(RECORD, host="elsewhere"), 60)
    with pytest.raises(WorkerNameTaken):
        await shared.join(RESTARTED, 60)


async def test_a_dead_process_of_this_machine_gives_its_name_up(shared: RedisMembership) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    await shared.join(replace(RECORD, pid=process.pid), 60)
    await shared.join(RESTARTED, 60)
    assert await shared.workers() == (RESTARTED,)


async def test_a_lease_that_ran_out_frees_the_name(shared: RedisMembership) -> None:
    await shared.join(RECORD, 0)
    assert await shared.workers() == ()
    await shared.join(RECORD, 0)
    await shared.join(RESTARTED, 60)
    assert await shared.workers() == (RESTARTED,)


async def test_a_watcher_polls_for_leases_that_ran_out(shared: RedisMembership) -> None:
    await shared.join(RECORD, 0.3)
    async with aclosing(shared.watch(poll_s=0.05)) as seen:
        assert await anext(seen) == (RECORD,)
        assert await anext(seen) == ()


async def test_a_dead_server_is_a_named_error(tmp_path: Path, cluster_name: str) -> None:
    nowhere = RedisConnection(open_client(f"unix://{tmp_path}/no.sock"), "no.sock", "none")
    with pytest.raises(MembershipUnavailable, match="keep the last known members"):
        await RedisMembership(nowhere, cluster=cluster_name).workers()
    await nowhere.close()
