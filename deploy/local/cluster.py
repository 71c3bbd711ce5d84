"""Start a cluster's processes in order, know when they are ready, stop them in order.

Whoever uses it decides what to do about a process that ends later: `keep_alive.py` restarts it,
a test looks at what the others do.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.child import ChildProcess
from deploy.local.errors import StartTimedOut, WorkerIncompatible
from deploy.local.loading import Loading, StartNews, next_news_after
from deploy.local.port import ReservedPort, reserve_port
from deploy.local.preflight import ask_machine, checked
from deploy.local.redis import LocalRedis, make_run_folder, start_own, use_given
from deploy.local.router_probe import RouterProbe
from deploy.local.settings import (
    ROUTER,
    ClusterSettings,
    EffectiveConfigs,
    child_environ,
    dialable_endpoint,
    plan_processes,
)
from deploy.local.shared_memory import remove_leftovers
from runtime.clock import MonotonicClock
from runtime.errors import StartupError
from tandemserve import AsyncClient, WorkerView

_POLL_S = 0.05
# On top of the drain: closing connections, joining the engine thread, leaving the registry.
_CLOSE_TIMEOUT_S = 15.0
# After a failed start nobody is served, so nothing needs to be drained.
_ABORT_TIMEOUT_S = 5.0

Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """For users who want no progress lines."""


@dataclass(slots=True)
class _Running:
    """What exists once the start has begun; filled in order, taken down in reverse."""

    run_folder: Path
    log_folder: Path
    port: ReservedPort | None = None
    redis: LocalRedis | None = None
    child_by_name: dict[str, ChildProcess] = field(default_factory=dict)
    probe: RouterProbe | None = None


class LocalCluster:
    """One router and its workers on this machine; `async with` starts and stops them.

    To be used from the main thread: elsewhere the processes would outlive a killed launcher.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        say: Say = say_nothing,
        tell_news: Callable[[StartNews], None] | None = None,
    ) -> None:
        """`tell_news`: what a start is doing that takes a while; by default it is said."""
        self._settings = settings
        self._say = say
        self._tell_news = tell_news or (lambda news: say(str(news)))
        self._configs: EffectiveConfigs
        self._running: _Running | None = None
        self._incarnation_by_worker: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def endpoint(self) -> str:
        """Host and port for a client on this machine."""
        port = self._begun().port
        assert port is not None
        return dialable_endpoint(self._configs.router.host, port.port)

    @property
    def log_folder(self) -> Path:
        return self._begun().log_folder

    @property
    def model_name(self) -> str:
        return self._configs.router.served_model_name

    @property
    def processes(self) -> tuple[ChildProcess, ...]:
        """Router, prefill workers, decode workers."""
        return tuple(self._begun().child_by_name.values())

    @property
    def redis(self) -> LocalRedis:
        redis = self._begun().redis
        assert redis is not None
        return redis

    def process(self, name: str) -> ChildProcess:
        """router-0, prefill-0, decode-0 and so on. Raises: KeyError."""
        return self._begun().child_by_name[name]

    def client(self) -> AsyncClient:
        """A client of this cluster, with the token it asks for; the caller closes it."""
        return self._probe().new_client()

    async def workers(self) -> tuple[WorkerView, ...]:
        """What the router knows of the workers; nothing while it does not answer."""
        return await self._probe().workers() or ()

    async def start(self) -> None:
        """Start everything and return when all workers are ready.

        Raises: StartupError in one line, after everything that was started has ended. The logs
        stay. Cancelled, it leaves nothing.
        """
        settings, self._configs, remarks = checked(self._settings)
        for remark in remarks:
            self._say(f"warning: {remark}")
        await ask_machine(settings, self._configs, self._say)
        try:
            await self._start_all(settings)
        except BaseException as error:
            # Whoever did not wait for the start has nothing to look up.
            await self._abort(keep_logs=not isinstance(error, asyncio.CancelledError))
            raise

    async def wait_ready(self, *names: str, timeout_s: float | None = None) -> None:
        """Return when these processes (all, without names) serve; a new life counts as new.

        Raises: ProcessEnded, WorkerIncompatible, StartTimedOut.
        """
        wanted = names or tuple(self._begun().child_by_name)
        waiting = dict.fromkeys(wanted)
        total = len(waiting)
        timeout_s = self._settings.start_timeout_s if timeout_s is None else timeout_s
        clock = MonotonicClock()
        began_at_s, news_at_s = clock.now(), next_news_after(0.0)
        while waiting:
            views = await self._probe().workers()
            # Those that were ready as well: without them the others may never be.
            self._require_running(wanted)
            for name in [name for name in waiting if self._is_ready(name, views)]:
                del waiting[name]
                self._say(f"{total - len(waiting)}/{total} processes ready: {name}")
            if not waiting:
                return
            elapsed_s = clock.now() - began_at_s
            if elapsed_s >= timeout_s:
                states = ", ".join(f"{name} ({self._state_of(name, views)})" for name in waiting)
                raise StartTimedOut(states, timeout_s, self.log_folder)
            if elapsed_s >= news_at_s:
                news_at_s = next_news_after(elapsed_s)
                loading = {name: self._loading_of(name, views) for name in waiting}
                self._tell_news(StartNews(elapsed_s, loading))
            await asyncio.sleep(_POLL_S)

    @property
    def drain_timeout_s(self) -> float:
        """How long `stop` lets running answers go on."""
        return self._configs.router.drain_timeout_s

    async def stop(self) -> tuple[str, ...]:
        """Drain and end the router, then the workers, then Redis; twice is harmless.

        Returns a line for each process that did not end in order; their logs stay.
        """
        if self._running is None:
            return ()
        running = self._running
        if running.probe is not None:
            await running.probe.close()
        children = running.child_by_name
        router = [child for name, child in children.items() if name == ROUTER]
        workers = [child for name, child in children.items() if name != ROUTER]
        problems = await _end(router, self._configs.router.drain_timeout_s + _CLOSE_TIMEOUT_S)
        drain_s = max(self._configs.prefill.drain_timeout_s, self._configs.decode.drain_timeout_s)
        problems += await _end(workers, drain_s + _CLOSE_TIMEOUT_S)
        problems += await _release(running, keep_logs=bool(problems))
        # Not before: `kill` may have to help.
        self._running = None
        return tuple(problems)

    def kill(self) -> None:
        """End all of our processes at once; for a user who will not wait for `stop`.

        The logs stay where a process had ended by itself, and not well.
        """
        if self._running is None:
            return
        has_failed = False
        for child in self._running.child_by_name.values():
            if child.is_running:
                child.kill()
            elif not child.ended_well:
                has_failed = True
        remove_leftovers()
        if not has_failed:
            shutil.rmtree(self._running.run_folder, ignore_errors=True)

    async def _start_all(self, settings: ClusterSettings) -> None:
        folder = make_run_folder()
        running = self._running = _Running(folder, settings.log_dir or folder)
        configs = self._configs
        running.port = reserve_port(configs.router.host, configs.router.port)
        url = configs.router.redis_url
        running.redis = await (start_own(folder) if url is None else use_given(url))
        self._say(f"redis ready ({running.redis.about})")
        running.probe = RouterProbe(self.endpoint, configs.router)
        plans = plan_processes(settings, configs, running.redis.url, running.port.port, folder)
        for plan in plans:
            log_path = running.log_folder / f"{plan.name}.log"
            environ = child_environ(os.environ, plan)  # noqa: TID251  children inherit it
            child = ChildProcess(plan.name, plan.command, environ, log_path)
            running.child_by_name[plan.name] = child
            child.start()
        self._say(
            f"loading model {self.model_name}: {settings.workers_text}; "
            f"logs in {running.log_folder}"
        )
        await self.wait_ready()
        self._require_one_kind(await self.workers())

    def _require_one_kind(self, views: tuple[WorkerView, ...]) -> None:
        """Workers that are ready each for itself may still not fit together.

        Raises: WorkerIncompatible.
        """
        own = [view for view in views if view.worker_id in self._begun().child_by_name]
        for view in own[1:]:
            if view.compatibility != own[0].compatibility:
                problem = (
                    f"it cannot take KV blocks from or for {own[0].worker_id}; give all workers "
                    "the same dtype, KV dtype, block size and number of KV slices"
                )
                log_path = self.process(view.worker_id).log_path
                raise WorkerIncompatible(view.worker_id, problem, log_path)

    def _require_running(self, names: Iterable[str]) -> None:
        """Raises: ProcessEnded."""
        for child in map(self.process, names):
            if not child.is_running:
                raise child.ending()

    def _is_ready(self, name: str, views: tuple[WorkerView, ...] | None) -> bool:
        child = self.process(name)
        if name == ROUTER:
            return views is not None
        view = next((view for view in views or () if view.worker_id == name), None)
        if view is None or view.incarnation == self._incarnation_by_worker.get(name):
            # Not known yet, or known only from the life before.
            return False
        if view.state == "incompatible":
            raise WorkerIncompatible(name, view.problem, child.log_path)
        if view.state != "ready":
            return False
        self._incarnation_by_worker[name] = view.incarnation
        return True

    def _state_of(self, name: str, views: tuple[WorkerView, ...] | None) -> str:
        if name == ROUTER or views is None:
            return f"router: {self._probe().problem or 'answers'}"
        view = next((view for view in views if view.worker_id == name), None)
        if view is None:
            return "not registered"
        return f"{view.state}{f': {view.problem}' if view.problem else ''}"

    def _loading_of(self, name: str, views: tuple[WorkerView, ...] | None) -> Loading:
        """By its own log, until the router knows it."""
        if any(view.worker_id == name for view in views or ()):
            return Loading(self._state_of(name, views))
        return self.process(name).loading or Loading("starting")

    async def _abort(self, *, keep_logs: bool) -> None:
        """Take down a half-started cluster; logs that stay say what went wrong."""
        running = self._begun()
        if running.probe is not None:
            await running.probe.close()
        await _end(list(running.child_by_name.values()), _ABORT_TIMEOUT_S)
        await _release(running, keep_logs=keep_logs and bool(running.child_by_name))
        self._running = None

    def _begun(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the cluster does not run; start it first")
        return self._running

    def _probe(self) -> RouterProbe:
        probe = self._begun().probe
        assert probe is not None
        return probe


async def _end(children: list[ChildProcess], timeout_s: float) -> list[str]:
    """SIGTERM to all, then SIGKILL to those that are still there; says which did not end well."""
    running = [child for child in children if child.is_running]
    for child in running:
        child.terminate()
    ended = await asyncio.gather(*(child.wait_ended(timeout_s) for child in running))
    problems = []
    for child, in_time in zip(running, ended, strict=True):
        if not in_time:
            child.kill()
            problems.append(
                f"{child.name} did not end within {timeout_s:g} s and was killed; "
                f"its log is {child.log_path}"
            )
        elif not child.ended_well:
            problems.append(child.ending().message)
    return problems


async def _release(running: _Running, *, keep_logs: bool) -> list[str]:
    problems = []
    if running.redis is not None:
        try:
            await running.redis.stop()
        except StartupError as error:
            problems.append(error.message)
    if running.port is not None:
        running.port.release()
    remove_leftovers()
    if not keep_logs and not problems:
        shutil.rmtree(running.run_folder, ignore_errors=True)
    return problems
