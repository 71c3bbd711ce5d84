"""What a real server answers instead of a result: a named error that says what to do."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.errors import LedgerUnavailable, MembershipUnavailable
from cluster.ledger import Claim, Grant, ReserveRequest, RouterLife, WorkerLife
from cluster.ledger_audit import check_invariants, read_whole
from cluster.redis_connection import RedisConnection, connect
from cluster.redis_ledger import RedisLedger, ledger_keys
from cluster.redis_membership import RedisMembership
from cluster.redis_scripts import Script, ScriptRunner
from cluster.redis_server import ServerBinary, bundled_binary, find_server_binary, start_server
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

ROUTER = RouterLife(RouterId("router-0"), Incarnation(1))
WORKER = WorkerLife(WorkerId("decode-0"), Incarnation(1))
CLUSTER = "mine"

Words = tuple[str, ...]


@dataclass(frozen=True)
class Refusing:
    """How a server is brought to refuse, and back, and what the error must advise."""

    name: str
    refuse: Words
    relent: Words
    advice: str


REFUSALS = [
    Refusing(
        "out of memory",
        ("CONFIG", "SET", "maxmemory", "1"),
        ("CONFIG", "SET", "maxmemory", "0"),
        "raise its maxmemory",
    ),
    Refusing(
        "a replica",
        ("REPLICAOF", "127.0.0.1", "1"),
        ("REPLICAOF", "NO", "ONE"),
        "give the address of its primary",
    ),
    Refusing(
        "replicas away",
        ("CONFIG", "SET", "min-replicas-to-write", "3"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
        "start its replicas",
    ),
    Refusing(
        "scripts forbidden",
        ("ACL", "SETUSER", "default", "-evalsha"),
        ("ACL", "SETUSER", "default", "+evalsha"),
        "allow its user",
    ),
    Refusing(
        "a command in scripts forbidden",
        ("ACL", "SETUSER", "default", "-hset"),
        ("ACL", "SETUSER", "default", "+hset"),
        "allow its user",
    ),
]


def binaries() -> list[ServerBinary]:
    bundled = bundled_binary()
    found = [find_server_binary()]
    if bundled is not None and found[0].path != bundled:
        found.append(ServerBinary(bundled, "bundled"))
    return found


@pytest.fixture(params=binaries(), ids=lambda binary: binary.path.name)
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[RedisConnection]:
    """A connection to a server that nobody else uses."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        server = await start_server(Path(directory), binary=request.param)
        connection = await connect(server.url, timeout_s=10.0)
        yield connection
        await connection.close()
        await server.stop()


async def open_books(opened: RedisConnection) -> RedisLedger:
    ledger = RedisLedger(opened, cluster=CLUSTER, timeout_s=10.0)
    await ledger.set_capacity(WORKER, 20)
    await ledger.renew(ROUTER, 60.0)
    return ledger


def want(name: str) -> ReserveRequest:
    return ReserveRequest(Claim(TaskId(name), "decode", 1), (WORKER,), 3)


async def say(opened: RedisConnection, words: Words) -> None:
    # Some commands are two words for the client.
    head = " ".join(words[:2]) if words[0] in ("CONFIG", "ACL") else words[0]
    rest = words[2:] if words[0] in ("CONFIG", "ACL") else words[1:]
    execute: Callable[..., Awaitable[object]] = opened.client.execute_command
    await execute(head, *rest)


@pytest.mark.parametrize("refusing", REFUSALS, ids=lambda refusing: refusing.name)
async def test_a_server_that_refuses_is_away_until_it_relents_and_the_error_says_why(
    opened: RedisConnection, refusing: Refusing
) -> None:
    ledger = await open_books(opened)
    await say(opened, refusing.refuse)
    for operation in (
        ledger.renew(ROUTER, 60.0),
        ledger.reserve(ROUTER, want("a")),
        ledger.reserve_many(ROUTER, [want("a"), want("b")]),
    ):
        with pytest.raises(LedgerUnavailable, match=f"it answered .*{refusing.advice}.*go on with"):
            await operation
    await say(opened, refusing.relent)
    check_invariants(await read_whole(ledger))
    assert isinstance(await ledger.reserve(ROUTER, want("a")), Grant)


async def test_keys_of_another_program_are_named_as_such(opened: RedisConnection) -> None:
    ledger = await open_books(opened)
    for key in ledger_keys(CLUSTER):
        await opened.client.delete(key)
        await opened.client.set(key, "not ours")
    with pytest.raises(LedgerUnavailable, match=r"another program wrote .* another cluster_name"):
        await ledger.reserve(ROUTER, want("a"))
    with pytest.raises(LedgerUnavailable, match="WRONGTYPE"):
        await ledger.snapshot()


async def test_members_get_the_same_answers_under_their_own_name(opened: RedisConnection) -> None:
    membership = RedisMembership(opened, cluster=CLUSTER, timeout_s=10.0)
    await say(opened, ("CONFIG", "SET", "maxmemory", "1"))
    with pytest.raises(MembershipUnavailable, match=r"raise its maxmemory.*keep the last known"):
        await membership.next_incarnation("decode-0")


async def test_a_script_that_fails_is_no_error_of_the_client_library(
    opened: RedisConnection,
) -> None:
    broken = {"broken": Script("broken", "return nil + 1")}
    runner = ScriptRunner(opened, broken, ["{mine}:key"], 10.0, LedgerUnavailable)
    with pytest.raises(LedgerUnavailable, match=r"operation broken on .* it answered .*arithmetic"):
        await runner.call("broken", ())
