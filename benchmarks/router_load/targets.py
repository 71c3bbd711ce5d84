"""What is measured: a router of ours with fake workers, or another router with fake backends.

The router under test has one core for itself; everything else shares the other one.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.router_load.client import Load, LoadClient
from benchmarks.router_load.http2 import ConnectionBroke
from cluster.redis_server import RedisServer, start_server
from runtime.bound_child import bound_to_this_process

START_TIMEOUT_S = 60.0
_LONG_CONTEXT = 10_000_000
# fakeoai listens here and on the three ports after it; no other way to choose them.
_PEER_PORT, _PEER_METRICS_PORT, _BACKEND_PORT = 18200, 19200, 18100
PEERS = {
    "vllm-router": ("vllm-router",),
    "vllm-router-pd": ("vllm-router", "--vllm-pd-disaggregation", "--kv-connector", "nixl"),
    "smg": ("smg", "launch", "--worker-startup-check-interval", "1"),
    "smg-pd": ("smg", "launch", "--worker-startup-check-interval", "1", "--pd-disaggregation"),
}


@dataclass(frozen=True, slots=True)
class Cores:
    """Where processes run; None leaves it to the kernel."""

    router: int | None = 0
    others: int | None = 1


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How our router is started."""

    model: Path
    cores: Cores
    arguments: tuple[str, ...] = ()
    has_uvloop: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """A router that answers."""

    port: int
    pid: int
    # From the start of its process to the first token that a client got, its workers being there.
    first_token_s: float
    # Of the ledger's server, where there is one.
    redis_pid: int = 0


@contextmanager
def process(command: Sequence[str], core: int | None, log: Path, **environ: str) -> Iterator[int]:
    """Run a command on one core until the end of the block; its process id."""
    pinned = command if core is None else (_taskset(), "-c", str(core), *command)
    with log.open("ab") as output:
        child = subprocess.Popen(
            bound_to_this_process(tuple(pinned)),
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(timeout=15.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def own_redis(core: int | None) -> Iterator[RedisServer]:
    """A server of our own on a free port."""
    with TemporaryDirectory(prefix="tandem-") as folder, asyncio.Runner() as runner:
        server = runner.run(start_server(Path(folder), port=free_port()))
        if core is not None:
            os.sched_setaffinity(server.pid, {core})
        try:
            yield server
        finally:
            runner.run(server.stop())


@contextmanager
def our_router(options: RouterOptions, pace_ms: float, is_silent: bool = False) -> Iterator[Target]:
    """One router process, its ledger, and the fake workers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tandem-")))
        cores = options.cores
        redis = stack.enter_context(own_redis(cores.others))
        url, common = redis.url, ("--model", str(options.model))
        silent = ("--silent",) if is_silent else ()
        fake = ("--pace-ms", str(pace_ms), *silent)
        stack.enter_context(fake_workers(redis, options, fake))
        port = free_port()
        command = [sys.executable, "-m", "router", "--redis-url", url, "--port", str(port)]
        command += [*common, "--log-level", "warning", *options.arguments]
        environ = {}
        if not options.has_uvloop:
            # What the import finds in place of the real one.
            (folder / "uvloop.py").write_text("raise ImportError\n")
            environ["PYTHONPATH"] = str(folder)
        began_at_s = time.perf_counter()
        log = folder / "router.log"
        pid = stack.enter_context(process(command, cores.router, log, **environ))
        if not is_silent:
            _wait_for(lambda: _answers(port), log)
        else:
            _wait_for(lambda: log.exists() and is_open(port), log)
            time.sleep(2.0)  # until it has dialled its workers
        yield Target(port, pid, time.perf_counter() - began_at_s, redis.pid)


@contextmanager
def fake_workers(
    redis: RedisServer, options: RouterOptions, arguments: Sequence[str] = ()
) -> Iterator[Target]:
    """The process with the fake workers; the port is that of the prefill worker."""
    command = [sys.executable, "-m", "benchmarks.router_load.testing", "--redis", redis.url]
    command += ["--model", str(options.model), *arguments]
    with TemporaryDirectory(prefix="tandem-") as folder:
        log = Path(folder) / "fake.log"
        began_at_s = time.perf_counter()
        with process(command, options.cores.others, log) as pid:
            _wait_for(lambda: "registered" in log.read_text(), log)
            port = int(log.read_text().partition("registered")[2].split()[0])
            yield Target(port, pid, time.perf_counter() - began_at_s, redis.pid)


@contextmanager
def bare_server(cores: Cores) -> Iterator[Target]:
    """gRPC alone in the place of a router."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.router_load.bare_server", "--port", str(port)]
    with TemporaryDirectory(prefix="tandem-") as folder:
        log = Path(folder) / "bare.log"
        began_at_s = time.perf_counter()
        with process(command, cores.router, log) as pid:
            _wait_for(lambda: is_open(port), log)
            yield Target(port, pid, time.perf_counter() - began_at_s)


@contextmanager
def no_router(options: RouterOptions) -> Iterator[Target]:
    """Fake workers that answer at once, to be asked without a router."""
    with own_redis(options.cores.others) as redis, fake_workers(redis, options) as target:
        yield target


@contextmanager
def long_context(options: RouterOptions) -> Iterator[RouterOptions]:
    """The same with room for prompts of any size in the model; a router reads no weights."""
    with TemporaryDirectory(prefix="tandem-") as folder:
        model = Path(folder) / options.model.name
        shutil.copytree(options.model, model)
        config = json.loads((model / "config.json").read_text("utf-8"))
        config["max_position_embeddings"] = _LONG_CONTEXT
        (model / "config.json").write_text(json.dumps(config), "utf-8")
        yield replace(options, model=model)


@contextmanager
def fake_backends(tools: Path, cores: Cores) -> Iterator[int]:
    """OpenAI-like backends for the peers; their process id."""
    with TemporaryDirectory(prefix="tandem-") as folder:
        log = Path(folder) / "backend.log"
        command = (str(tools / "fakeoai"), str(_BACKEND_PORT), "4")
        with process(command, cores.others, log) as pid:
            _wait_for(lambda: is_open(_BACKEND_PORT), log)
            yield pid


@contextmanager
def peer_router(name: str, venv: Path, cores: Cores) -> Iterator[Target]:
    """One of PEERS in front of the backends, as it comes but for round robin and quiet logs."""
    binary, *arguments = PEERS[name]
    backends = [f"http://127.0.0.1:{_BACKEND_PORT + i}" for i in range(2)]
    if name.endswith("-pd"):
        bootstrap = ["8998"] if binary == "smg" else []
        arguments += ["--prefill", backends[0], *bootstrap, "--decode", backends[1]]
    else:
        arguments += ["--worker-urls", *backends]
    command = [str(venv / "bin" / binary), *arguments, "--host", "127.0.0.1"]
    command += ["--port", str(_PEER_PORT), "--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(_PEER_METRICS_PORT)]
    command += ["--max-concurrent-requests", "4096"]
    with TemporaryDirectory(prefix="tandem-") as folder:
        log = Path(folder) / "peer.log"
        began_at_s = time.perf_counter()
        with process(command, cores.router, log) as pid:
            _wait_for(lambda: _answers_http(_PEER_PORT), log)
            yield Target(_PEER_PORT, pid, time.perf_counter() - began_at_s)


def _taskset() -> str:
    found = shutil.which("taskset")
    if found is None:
        raise SystemExit("no taskset on the PATH; install util-linux, or give --unpinned")
    return found


def is_open(port: int) -> bool:
    """Somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """One that nobody had a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        client = LoadClient(port, Load(1, 1))
        client.run_until(time.perf_counter() + 5.0, max_requests=1)
    except (OSError, ConnectionBroke):
        return False
    client.close()
    return bool(client.tally.num_tokens)


def _answers_http(port: int) -> bool:
    body = b'{"model":"tiny","prompt":"hello","max_tokens":4}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(head.encode() + body)
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline_at_s = time.perf_counter() + START_TIMEOUT_S
    while not condition():
        if time.perf_counter() > deadline_at_s:
            last = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise SystemExit(f"did not answer within {START_TIMEOUT_S:g} s\n{last}")
        time.sleep(0.02)
