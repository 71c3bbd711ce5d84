"""Our own server: found, started, watched, stopped; and what a user reads when it cannot be."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.errors import (
    RedisPortTaken,
    RedisServerFailed,
    RedisServerMissing,
    RedisUnreachable,
    RedisUnsuitable,
)
from cluster.redis_connection import connect, printable_address
from cluster.redis_server import (
    ServerBinary,
    bundled_binary,
    find_server_binary,
    start_server,
)

SECRET = "open-sesame"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: the path of a socket has little room."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as name:
        yield Path(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_server_answers_on_its_socket_until_it_is_stopped(directory: Path) -> None:
    server = await start_server(directory)
    opened = await connect(server.url)
    assert opened.server.startswith(("Valkey ", "Redis "))
    assert os.stat(server.address).st_mode & 0o077 == 0
    await opened.close()
    await server.stop()
    await server.stop()
    assert not server.is_running
    with pytest.raises(RedisUnreachable, match="start one or leave --redis away"):
        await connect(server.url)


async def test_a_server_on_a_port_listens_on_loopback_only(directory: Path) -> None:
    server = await start_server(directory, port=free_port())
    listening = psutil.Process(server.pid).net_connections(kind="tcp")
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    await (await connect(server.url)).close()
    await server.stop()


async def test_a_server_writes_nothing_but_its_log(directory: Path) -> None:
    server = await start_server(directory)
    opened = await connect(server.url)
    await opened.client.set("key", "value")
    await opened.close()
    await server.stop()
    assert set(os.listdir(directory)) <= {"redis.log", "redis.sock"}


async def test_a_taken_port_is_named(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        with pytest.raises(RedisPortTaken, match=f"127.0.0.1:{port} is taken.*another port"):
            await start_server(directory, port=port)


async def test_a_second_server_does_not_take_the_socket_of_the_first(directory: Path) -> None:
    first = await start_server(directory)
    with pytest.raises(RedisPortTaken):
        await start_server(directory)
    await (await connect(first.url)).close()
    await first.stop()


async def test_the_socket_of_a_killed_server_is_used_again(directory: Path) -> None:
    first = await start_server(directory)
    os.kill(first.pid, signal.SIGKILL)
    await first.stop()
    second = await start_server(directory)
    await (await connect(second.url)).close()
    await second.stop()


async def test_a_server_that_does_not_start_shows_its_last_words(directory: Path) -> None:
    with pytest.raises(RedisServerFailed, match=r"ended with status \d+.*redis\.log"):
        await start_server(directory, extra_args=("--no-such-option", "1"))


async def test_a_server_that_never_answers_is_ended(directory: Path) -> None:
    mute = directory / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    mute.chmod(0o755)
    with pytest.raises(RedisServerFailed, match=r"no answer within 0\.2 s"):
        await start_server(directory, binary=ServerBinary(mute, "given"), timeout_s=0.2)


async def test_a_socket_path_that_is_too_long_is_named(directory: Path) -> None:
    with pytest.raises(RedisServerFailed, match="path is too long"):
        await start_server(directory / ("d" * 120))


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_the_server_dies_with_a_killed_parent(directory: Path) -> None:
    program = (
        "import asyncio, pathlib, sys, time\n"
        "from cluster.redis_server import start_server\n"
        "server = asyncio.run(start_server(pathlib.Path(sys.argv[1])))\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(directory)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    # A child of another process: gone when psutil no longer finds it, or as an unreaped zombie.
    gone, alive = psutil.wait_procs([child], timeout=20.0)
    assert gone or alive[0].status() == psutil.STATUS_ZOMBIE


def test_the_path_comes_before_the_bundled_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(directory))
    bundled = bundled_binary()
    if bundled is not None:
        assert find_server_binary() == ServerBinary(bundled, "bundled")
    for name in ("redis-server", "valkey-server"):
        executable = directory / name
        executable.write_text("#!/bin/sh\n")
        executable.chmod(0o755)
        assert find_server_binary() == ServerBinary(executable, "path")
    assert find_server_binary(directory / "redis-server").source == "given"
    with pytest.raises(RedisServerMissing, match="install one"):
        find_server_binary(directory / "nothing")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://user:{SECRET}@host.example:7000/0", "host.example:7000"),
        ("redis://host.example", "host.example:6379"),
        (f"rediss://:{SECRET}@[::1]:7000", "[::1]:7000"),
        (f"unix://:{SECRET}@/run/redis.sock", "/run/redis.sock"),
    ],
)
def test_a_printed_address_holds_no_secret(url: str, shown: str) -> None:
    assert printable_address(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host",
        f"redis://:{SECRET}@host:99999",
        f"redis://:{SECRET}@host:no",
        f"{SECRET}",
        f"redis://:{SECRET}@127.0.0.1:1/0?nonsense=1",
        f"redis://:{SECRET}@127.0.0.1:1",
        "redis://127.0.0.1:1/0?socket_timeout=abc",
    ],
)
async def test_an_unusable_url_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(RedisUnreachable, match="unreachable Redis at") as caught:
        await connect(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_wrong_credentials_are_told_apart_from_silence(directory: Path) -> None:
    server = await start_server(directory, port=free_port())
    opened = await connect(server.url)
    await opened.client.config_set("requirepass", SECRET)
    await opened.close()
    await (await connect(server.url.replace("//", f"//:{SECRET}@"))).close()
    for wrong in (server.url, server.url.replace("//", f"//:{SECRET}-not@")):
        with pytest.raises(RedisUnreachable, match="refused the credentials; check the user"):
            await connect(wrong)
    await server.stop()


async def test_a_server_that_may_evict_the_ledger_is_refused(directory: Path) -> None:
    evicting = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server = await start_server(directory, extra_args=evicting)
    with pytest.raises(RedisUnsuitable, match="noeviction"):
        await connect(server.url)
    await server.stop()
