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


class LocalRedis:
    """Where the cluster's shared state lies. `server` is None when it belongs to others."""

    def __init__(self, url: str, about: str, server: RedisServer | None) -> None:
        self.url = url
        # For people: what it is and where it comes from.
        self.about = about
        self.server = server

    @property
    def is_running(self) -> bool:
        """False when a server of ours has ended; nothing is known of others."""
        return self.server is None or self.server.is_running

    async def revive(self, folder: Path) -> None:
        """Start our server again at the same address, empty. Raises: LaunchFailed."""
        if self.server is not None and not self.server.is_running:
            await self.server.stop()
            self.server = (await start_own(folder)).server

    async def stop(self) -> None:
        """End our server, leave others alone. Raises: LaunchFailed."""
        if self.server is not None:
            try:
                await self.server.stop()
            except ClusterError as error:
                raise LaunchFailed(str(error)) from error


async def use_given(url: str) -> LocalRedis:
    """Check that a server answers and suits. Raises: LaunchFailed."""
    try:
        connection = await connect(url)
    except ClusterError as error:
        raise LaunchFailed(str(error)) from error
    try:
        return LocalRedis(url, f"{connection.server} at {connection.address}", None)
    finally:
        await connection.close()


async def start_own(folder: Path) -> LocalRedis:
    """Start a server on a socket file in `folder`. Raises: LaunchFailed."""
    try:
        binary = find_server_binary()
        server = await start_server(folder, binary=binary)
    except ClusterError as error:
        raise LaunchFailed(str(error)) from error
    return LocalRedis(server.url, f"{binary.path.name}, {binary.source}", server)


def make_run_folder() -> Path:
    """A new temporary folder whose path is short enough for a socket file inside."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-"))
    if len(str(folder).encode()) <= _MOST_FOLDER_BYTES:
        return folder
    shutil.rmtree(folder)
    return Path(tempfile.mkdtemp(prefix="tandem-", dir="/tmp"))
