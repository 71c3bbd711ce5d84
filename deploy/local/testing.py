"""For tests: the launcher as a process of its own, and ways to harm what it started."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.port import reserve_port
from deploy.local.redis import OwnRedis
from deploy.local.settings import ROOT
from kvtransfer.segment import segment_name
from tandemserve import AsyncClient, Client, Completion, Delta

# Loading takes a few seconds on an idle machine; these are for one that is busy.
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0
REDIS = "redis"


class LauncherProcess:
    """`python -m deploy.local ...`, what it says, and the processes below it."""

    def __init__(self, arguments: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", *arguments],
            cwd=ROOT,
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As a shell would start it: a signal to the caller's group does not reach it.
            start_new_session=True,
        )
        self._said: list[str] = []
        self._has_news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        # Noted when it was ready: Redis, the router and the workers.
        self.children: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready_line(self) -> str:
        """Wait for the first line on stdout. Raises: AssertionError when there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError("the launcher ended: " + "".join(self._said))
        self.note_children()
        return line

    def ready(self) -> dict[str, Any]:
        """The same of `up --json`."""
        ready: dict[str, Any] = json.loads(self.ready_line())
        return ready

    def note_children(self) -> None:
        """Remember what runs below the launcher, to look for it when the launcher is gone."""
        self.children = psutil.Process(self.pid).children(recursive=True)

    def wait_said(self, part: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """The first line on stderr with this part in it. Raises: AssertionError."""

        def found() -> str:
            return next((line for line in self._said if part in line), "")

        with self._has_news:
            if not self._has_news.wait_for(found, timeout_s):
                raise AssertionError(f"never said {part!r}: " + "".join(self._said))
            return found()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, timeout_s: float = START_TIMEOUT_S) -> tuple[int, str, str]:
        """Wait for the end; returns exit code, the rest of stdout, and stderr."""
        assert self._process.stdout is not None
        code = self._process.wait(timeout_s)
        out = self._process.stdout.read()
        self._listener.join(END_TIMEOUT_S)
        return code, out, "".join(self._said)

    def survivors(self, timeout_s: float = END_TIMEOUT_S) -> list[psutil.Process]:
        """The noted processes that do not go away in time."""
        alive: list[psutil.Process] = psutil.wait_procs(self.children, timeout=timeout_s)[1]
        return alive

    def close(self) -> None:
        """Leave nothing behind, whatever has happened."""
        self._process.kill()
        self._process.wait(END_TIMEOUT_S)
        for process in self.survivors(timeout_s=0.0):
            process.kill()
        self._listener.join(END_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                with self._has_news:
                    self._said.append(line)
                    self._has_news.notify_all()


def kv_pools_of(endpoint: str) -> list[Path]:
    """The files in shared memory of the cluster's decode workers, as long as these live."""
    with Client(endpoint) as client:
        workers = client.admin.workers()
    names = [segment_name("tandem", worker.worker_id, worker.incarnation) for worker in workers]
    paths = [Path("/dev/shm", name) for name in names]
    return [path for path in paths if path.exists()]


class Saboteur:
    """Harms the processes of a running cluster: router-0, prefill-0, ..., and "redis"."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._frozen: set[str] = set()

    def freeze(self, *names: str) -> None:
        """Stop them without ending them, as a debugger, a full swap or a hung host would."""
        for name in names:
            os.kill(self._pid(name), signal.SIGSTOP)
            self._frozen.add(name)

    def thaw(self, *names: str) -> None:
        """Let them go on; those that are not frozen do so anyway."""
        for name in names:
            if name in self._frozen:
                self._frozen.remove(name)
                os.kill(self._pid(name), signal.SIGCONT)

    def thaw_all(self, *, but: str = "") -> None:
        """Let everybody go on, except one."""
        self.thaw(*(name for name in sorted(self._frozen) if name != but))

    def kill(self, name: str) -> None:
        """SIGKILL, frozen or not; returns when the process is gone."""
        self._frozen.discard(name)
        if name == REDIS:
            pid = self._pid(name)
            os.kill(pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10.0)
        else:
            self._cluster.process(name).kill()

    def start(self, name: str) -> None:
        """Begin another life of a process that has ended; the caller waits until it is ready."""
        self._cluster.process(name).start()

    async def revive_redis(self) -> None:
        """Start a killed Redis again: empty, at the same address."""
        await self._own_redis().revive()

    def _pid(self, name: str) -> int:
        return self._own_redis().pid if name == REDIS else self._cluster.process(name).pid

    def _own_redis(self) -> OwnRedis:
        redis = self._cluster.redis
        assert isinstance(redis, OwnRedis), "a given Redis belongs to others"
        return redis


async def answer_without_gaps(
    client: AsyncClient, prompt: list[int], num_output: int
) -> Completion:
    """A drawn answer with logprobs; each of its tokens comes once and in its turn."""
    received: list[int] = []
    async with client.stream(
        prompt, max_tokens=num_output, temperature=0.8, seed=11, ignore_eos=True, logprobs=1
    ) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                assert event.first_token_index == len(received)
                received += event.token_ids
        answer = await stream.completion()
    assert tuple(received) == answer.token_ids
    return answer


@dataclass(frozen=True, slots=True)
class ExtraRouter:
    """A replica beside the router of the cluster."""

    child: ChildProcess
    endpoint: str


@asynccontextmanager
async def extra_router(
    cluster: LocalCluster, model: Path, router_id: str, **settings: str
) -> AsyncIterator[ExtraRouter]:
    """A router that joins a running cluster; it must end in order, unless it was killed."""
    port = reserve_port("127.0.0.1", 0)
    values = {"drain_timeout_s": "5", "heartbeat_timeout_s": "60"} | settings
    values |= {"model": str(model), "router_id": router_id, "redis_url": cluster.redis.url}
    values |= {"host": "127.0.0.1", "port": str(port.port)}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    command = (sys.executable, "-P", "-m", "router", *flags)
    environ = dict(os.environ, PYTHONPATH=str(ROOT))  # noqa: TID251  children inherit it
    log_path = cluster.log_folder / f"{router_id}.log"
    child = ChildProcess(router_id, command, environ, log_path)
    child.start()
    try:
        yield ExtraRouter(child, f"127.0.0.1:{port.port}")
        if child.is_running:
            child.terminate()
            assert await child.wait_ended(END_TIMEOUT_S)
            assert child.ended_well, log_path.read_text("utf-8")
    finally:
        child.kill()
        port.release()
