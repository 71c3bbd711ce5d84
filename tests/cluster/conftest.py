"""Servers, one a session, and a ledger of every kind on a clock that the test moves."""

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakeredis import FakeAsyncRedis

from cluster.ledger import Ledger, RouterLife, WorkerLife
from cluster.memory_ledger import MemoryLedger
from cluster.redis_connection import RedisConnection, connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_server import (
    RedisServer,
    ServerBinary,
    bundled_binary,
    find_server_binary,
    start_server,
)
from runtime.clock import ManualClock
from scheduling.ids import Incarnation, RouterId, WorkerId


@dataclass(frozen=True)
class Stage:
    """A ledger, the clock that its leases run on, and who takes part."""

    ledger: Ledger
    clock: ManualClock
    router: RouterLife
    worker: WorkerLife


def _binary_named(name: str) -> ServerBinary:
    if name == "bundled":
        bundled = bundled_binary()
        return ServerBinary(bundled, "bundled") if bundled else find_server_binary()
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH")
    return ServerBinary(Path(found), "path")


def _run_server(binary: ServerBinary) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        server = asyncio.run(start_server(Path(directory), binary=binary))
        try:
            yield server
        finally:
            asyncio.run(server.stop())


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    """The server that `tandem up` would start here."""
    yield from _run_server(_binary_named("bundled"))


@pytest.fixture(scope="session")
def debian_redis() -> Iterator[RedisServer]:
    """Redis itself, where it is installed."""
    yield from _run_server(_binary_named("redis-server"))


@pytest.fixture
def cluster_name() -> str:
    """Keeps the keys of one test apart from those of all others."""
    return uuid.uuid4().hex


@pytest.fixture
async def connection(server: RedisServer) -> AsyncIterator[RedisConnection]:
    opened = await connect(server.url, timeout_s=10.0)
    yield opened
    await opened.close()


@pytest.fixture(params=["memory", "fakeredis", "server", "redis-server"])
def server_of_stage(request: pytest.FixtureRequest) -> RedisServer | str:
    """A running server, or the name of something in this process."""
    if request.param in ("memory", "fakeredis"):
        return str(request.param)
    fixture = {"server": "server", "redis-server": "debian_redis"}[request.param]
    running: RedisServer = request.getfixturevalue(fixture)
    return running


@pytest.fixture
async def stage(server_of_stage: RedisServer | str, cluster_name: str) -> AsyncIterator[Stage]:
    """The contract must hold for whatever this gives."""
    clock = ManualClock(1000.0)
    router = RouterLife(RouterId("router-0"), Incarnation(1))
    worker = WorkerLife(WorkerId("decode-0"), Incarnation(1))
    if server_of_stage == "memory":
        yield Stage(MemoryLedger(clock), clock, router, worker)
        return
    if isinstance(server_of_stage, str):
        opened = RedisConnection(FakeAsyncRedis(decode_responses=True), "fakeredis", "fake")
    else:
        opened = await connect(server_of_stage.url, timeout_s=10.0)
    ledger = RedisLedger(opened, cluster=cluster_name, clock=clock, timeout_s=10.0)
    yield Stage(ledger, clock, router, worker)
    await opened.close()
