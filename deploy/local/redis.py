"""The Redis of a local cluster: one that was given, or a server of our own next to it."""

import shutil
import tempfile
from pathlib import Path

from cluster.errors import ClusterError
from cluster.redis_connection import connect
from cluster.redis_server import RedisServer, find_server_binary, start_server
from deploy.local.errors import LaunchFailed

# A Unix socket's path holds little more than a hundred bytes; this leaves room for its name.
_MOST_FOLDER_BYTES = 80


class GivenRedis:
    """A server that belongs to others: checked once, then left alone."""

    def __init__(self, url: str, about: str) -> None:
        self.url = url
        # For people: what it is and where it is.
        self.about = about

    async def stop(self) -> None:
        """Nothing to do; others may use it."""


class OwnRedis:
    """A server on a socket file, which ends with this process."""

    def __init__(self, server: RedisServer, about: str, folder: Path) -> None:
        self.url = server.url
        # For people: what it is and where it was found.
        self.about = about
        self._server = server
        self._folder = folder

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def is_running(self) -> bool:
        return self._server.is_running

    @property
    def log_path(self) -> Path:
        return self._folder / "redis.log"

    async def revive(self) -> None:
        """Start it again, empty, at the same address. Raises: LaunchFailed."""
        await self.stop()
        self._server = (await start_own(self._folder))._server

    async def stop(self) -> None:
        """End it; twice is harmless. Raises: LaunchFailed."""
        try:
            await self._server.stop()
        except ClusterError as error:
            raise LaunchFailed(str(error)) from error


LocalRedis = GivenRedis | OwnRedis


async def use_given(url: str) -> GivenRedis:
    """Check that a server answers and suits. Raises: LaunchFailed."""
    try:
        connection = await connect(url)
    except ClusterError as error:
        raise LaunchFailed(str(error)) from error
    try:
        return GivenRedis(url, f"{connection.server} at {connection.address}")
    finally:
        await connection.close()


async def start_own(folder: Path) -> OwnRedis:
    """Start a server on a socket file in `folder`. Raises: LaunchFailed."""
    try:
        binary = find_server_binary()
        server = await start_server(folder, binary=binary)
    except ClusterError as error:
        raise LaunchFailed(str(error)) from error
    return OwnRedis(server, f"{binary.path.name}, {binary.source}", folder)


def make_run_folder() -> Path:
    """A new temporary folder whose path is short enough for a socket file inside."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-"))
    if len(str(folder).encode()) <= _MOST_FOLDER_BYTES:
        return folder
    shutil.rmtree(folder)
    return Path(tempfile.mkdtemp(prefix="tandem-", dir="/tmp"))
