"""What only a real server can show: races, its own clock, lost scripts, silence, secrets."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cluster.errors import LedgerCorrupted, LedgerUnavailable
from cluster.ledger import (
    Claim,
    Grant,
    Refusal,
    Release,
    ReserveRequest,
    RouterLife,
    WorkerLife,
)
from cluster.ledger_audit import check_invariants, read_whole
from cluster.redis_connection import RedisConnection, connect, open_client
from cluster.redis_ledger import RedisLedger, ledger_keys
from cluster.redis_server import RedisServer, start_server
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

ROUTER = RouterLife(RouterId("router-0"), Incarnation(1))
WORKERS = tuple(WorkerLife(WorkerId(f"decode-{i}"), Incarnation(1)) for i in range(2))


def want(name: str, num_blocks: int = 3, attempt: int = 1) -> ReserveRequest:
    return ReserveRequest(Claim(TaskId(name), "decode", attempt), WORKERS, num_blocks)


async def open_books(ledger: RedisLedger, num_blocks: int = 20) -> None:
    for worker in WORKERS:
        await ledger.set_capacity(worker, num_blocks)
    await ledger.renew(ROUTER, 60.0)


@pytest.fixture
async def own_server() -> AsyncIterator[RedisServer]:
    """A server that the test may stop, freeze or kill."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        server = await start_server(Path(directory))
        yield server
        await server.stop()


async def test_racing_routers_never_promise_more_than_there_is(
    server: RedisServer, cluster_name: str
) -> None:
    connections = [await connect(server.url, timeout_s=20.0) for _ in range(4)]
    ledgers = [RedisLedger(c, cluster=cluster_name, timeout_s=20.0) for c in connections]
    lives = [RouterLife(RouterId(f"router-{i}"), Incarnation(1)) for i in range(4)]
    await open_books(ledgers[0])
    for ledger, life in zip(ledgers, lives, strict=True):
        await ledger.renew(life, 60.0)

    async def serve(index: int) -> int:
        ledger, life = ledgers[index % 4], lives[index % 4]
        num_granted = 0
        for round_number in range(6):
            task = f"{index}/{round_number}"
            outcome = await ledger.reserve(life, want(task))
            if isinstance(outcome, Grant):
                num_granted += 1
                check_invariants(await read_whole(ledger))
                await ledger.release(life, Release(TaskId(task), 1))
        return num_granted

    granted = await asyncio.gather(*(serve(index) for index in range(24)))
    assert sum(granted) > 0
    snapshot = await read_whole(ledgers[0])
    assert [book.num_reserved for book in snapshot.workers] == [0, 0]
    for opened in connections:
        await opened.close()


async def test_of_many_that_want_the_last_blocks_exactly_enough_succeed(
    connection: RedisConnection, cluster_name: str
) -> None:
    ledger = RedisLedger(connection, cluster=cluster_name, timeout_s=20.0)
    await open_books(ledger)
    outcomes = await asyncio.gather(
        *(ledger.reserve(ROUTER, want(str(i))) for i in range(40)),
    )
    assert sum(isinstance(outcome, Grant) for outcome in outcomes) == 2 * (20 // 3)
    assert sum(isinstance(outcome, Refusal) for outcome in outcomes) == 40 - 2 * (20 // 3)
    check_invariants(await read_whole(ledger))


async def test_leases_run_on_the_servers_clock(
    connection: RedisConnection, cluster_name: str
) -> None:
    ledger = RedisLedger(connection, cluster=cluster_name, timeout_s=20.0)
    await open_books(ledger)
    await ledger.renew(ROUTER, 0.2)
    await ledger.reserve(ROUTER, want("a"))
    async with asyncio.timeout(20.0):
        freed = (await ledger.sweep()).freed
        while not freed:
            await connection.client.blpop(["nothing"], timeout=0.02)
            freed = (await ledger.sweep()).freed
    assert [holding.claim.task_id for holding in freed] == ["a"]


async def test_scripts_that_the_server_lost_are_sent_again(
    connection: RedisConnection, cluster_name: str
) -> None:
    ledger = RedisLedger(connection, cluster=cluster_name, timeout_s=20.0)
    await open_books(ledger)
    await connection.client.script_flush()
    assert isinstance(await ledger.reserve(ROUTER, want("a")), Grant)
    await connection.client.script_flush()
    outcomes = await ledger.reserve_many(ROUTER, [want("a"), want("b")])
    assert all(isinstance(outcome, Grant) for outcome in outcomes)
    assert len((await read_whole(ledger)).holdings) == 2


async def test_a_batch_beyond_one_pipeline_arrives_whole(
    connection: RedisConnection, cluster_name: str
) -> None:
    ledger = RedisLedger(connection, cluster=cluster_name, timeout_s=20.0)
    await open_books(ledger, num_blocks=600)
    requests = [want(str(i), num_blocks=2) for i in range(600)]
    assert all(isinstance(g, Grant) for g in await ledger.reserve_many(ROUTER, requests))
    releases = [Release(TaskId(str(i)), 1) for i in range(600)]
    assert await ledger.release_many(ROUTER, releases) == 1200


async def test_a_frozen_server_is_reported_in_time_and_a_retry_is_safe(
    own_server: RedisServer,
) -> None:
    opened = await connect(own_server.url)
    ledger, patient = (RedisLedger(opened, timeout_s=timeout_s) for timeout_s in (0.2, 20.0))
    await open_books(patient)
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LedgerUnavailable, match=r"no answer within 0\.2 s.*repeating is safe"):
            await ledger.reserve(ROUTER, want("a"))
        with pytest.raises(LedgerUnavailable):
            await ledger.release(ROUTER, Release(TaskId("b"), 1))
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    # Both messages wait in the server's sockets and are carried out late: no reply goes astray.
    outcomes = await asyncio.gather(*(patient.reserve(ROUTER, want("a")) for _ in range(8)))
    assert set(outcomes) == {Grant(WORKERS[0], 3)}
    check_invariants(await read_whole(patient))
    assert await patient.release(ROUTER, Release(TaskId("a"), 1)) == 3
    await opened.close()


async def test_a_restarted_server_is_used_again_without_a_new_ledger(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        first = await start_server(Path(directory))
        opened = await connect(first.url)
        ledger = RedisLedger(opened, timeout_s=10.0)
        await open_books(ledger)
        await first.stop()
        with pytest.raises(LedgerUnavailable, match="no such file"):
            await ledger.reserve(ROUTER, want("a"))
        second = await start_server(Path(directory))
        await open_books(ledger)
        assert isinstance(await ledger.reserve(ROUTER, want("a")), Grant)
        await opened.close()
        await second.stop()


async def test_errors_hold_no_password(own_server: RedisServer) -> None:
    secret = "open-sesame"
    opened = await connect(own_server.url)
    await opened.client.config_set("requirepass", secret)
    client = open_client(own_server.url.replace("unix://", f"unix://:{secret}-wrong@"))
    ledger = RedisLedger(RedisConnection(client, own_server.address, "?"), timeout_s=10.0)
    with pytest.raises(LedgerUnavailable, match="refused the credentials") as caught:
        await ledger.renew(ROUTER, 1.0)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert secret not in str(shown)
        shown = shown.__cause__
    await client.aclose()
    await opened.close()


async def test_all_keys_lie_in_one_slot_of_a_redis_cluster() -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        server = await start_server(
            Path(directory),
            extra_args=("--cluster-enabled", "yes", "--cluster-port", "0"),
        )
        opened = await connect(server.url)
        command: Callable[..., Awaitable[object]] = opened.client.execute_command
        await command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with asyncio.timeout(20.0):
            while "cluster_state:ok" not in str(await command("CLUSTER", "INFO")):
                pass
        ledger = RedisLedger(opened, timeout_s=10.0)
        await open_books(ledger)
        assert isinstance(await ledger.reserve(ROUTER, want("a")), Grant)
        assert (await ledger.worker_lost(WORKERS[0]))[0].claim.task_id == "a"
        check_invariants(await read_whole(ledger))
        await opened.close()
        await server.stop()


async def test_an_audit_finds_books_that_do_not_add_up(
    connection: RedisConnection, cluster_name: str
) -> None:
    ledger = RedisLedger(connection, cluster=cluster_name, timeout_s=20.0)
    await open_books(ledger)
    await ledger.reserve(ROUTER, want("a"))
    check_invariants(await read_whole(ledger))
    holdings_key = ledger_keys(cluster_name)[1]
    await connection.client.delete(holdings_key.replace("holdings", "by_worker"))
    with pytest.raises(LedgerCorrupted, match="3 reserved, 0 held"):
        check_invariants(await read_whole(ledger))


async def test_clusters_do_not_see_each_other(
    connection: RedisConnection, cluster_name: str
) -> None:
    mine = RedisLedger(connection, cluster=cluster_name, timeout_s=20.0)
    other = RedisLedger(connection, cluster=cluster_name + "-b", timeout_s=20.0)
    await open_books(mine)
    await mine.reserve(ROUTER, want("a"))
    assert (await read_whole(other)).workers == ()


async def test_no_call_falls_behind_because_the_server_has_to_be_given_its_script(
    own_server: RedisServer,
) -> None:
    opened = await connect(own_server.url)
    ledger = RedisLedger(opened, timeout_s=20.0)
    await ledger.set_capacity(WORKERS[0], 3)
    await ledger.renew(ROUTER, 60.0)
    assert isinstance(await ledger.reserve(ROUTER, want("a")), Grant)
    # The first release of all; the script of the reservation behind it has run before.
    releasing = asyncio.create_task(ledger.release(ROUTER, Release(TaskId("a"), 1)))
    reserving = asyncio.create_task(ledger.reserve(ROUTER, want("b")))
    assert await releasing == 3
    assert isinstance(await reserving, Grant)
    await opened.close()
