"""A worker's process: assemble, register, serve routers, drain, leave.

The event loop talks; the engine thread computes. Neither waits for the other.
"""

import asyncio
from dataclasses import replace
from functools import partial

from cluster.errors import ClusterError
from cluster.ledger import Shares, WorkerLife
from cluster.membership import Membership, WorkerRecord
from cluster.process_identity import this_process
from cluster.redis_connection import RedisConnection, connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_membership import RedisMembership
from cluster.registration import Registration
from engine.runner import RankLost
from kvtransfer import nccl_settings
from runtime.clock import MonotonicClock, since_boot_s, wall_time_ns
from runtime.errors import StartupError
from runtime.grpc_server import BoundServer, ServerOptions, build_server
from runtime.logging import get_logger
from runtime.process import StopRequested
from runtime.wire.values import MAX_START_S
from runtime.worker_config import WorkerConfig
from scheduling.errors import StaleIncarnation
from scheduling.ids import WorkerId
from scheduling.messages import WorkerHello
from tandemserve.internal.v1 import worker_pb2_grpc
from worker.assembly import BuildRole, Worker, assemble
from worker.engine_loop import EngineLoop
from worker.own_thread import run_unless_stopped
from worker.rank_group import rank_processes
from worker.session import SERVICE_NAME, WorkerSessions
from worker.transport_names import NCCL, transport_names
from worker.watchdog import StallSettings, Watchdog

log = get_logger()

_CLOSE_TIMEOUT_S = 5.0
# Tasks that a router placed before it heard that the worker drains arrive within this.
_SETTLE_S = 0.2


async def run_worker(config: WorkerConfig, stop: StopRequested, build_role: BuildRole) -> None:
    """Serve until asked to stop, then drain. Raises: StartupError."""
    if config.redis_url is None:
        raise StartupError(
            "no Redis: give --redis-url redis://HOST:PORT, or let `tandem up` start everything"
        )
    if NCCL in transport_names(config):
        # Before anything here starts a thread.
        nccl_settings.prepare_process()
    options = ServerOptions(config.host, config.port, max_message_bytes=config.max_message_bytes)
    server = build_server(options, (SERVICE_NAME,))
    try:
        redis = await connect(config.redis_url)
    except ClusterError as error:
        raise StartupError(error.message) from error
    try:
        membership = RedisMembership(redis, cluster=config.cluster_name)
        try:
            incarnation = await membership.next_incarnation(f"worker {config.worker_id}")
        except ClusterError as error:
            raise StartupError(error.message) from error
        with rank_processes(config) as ranks:
            load = partial(assemble, config, incarnation, build_role, ranks)
            worker = await run_unless_stopped(load, stop, _close)
            if worker is None:
                return
            try:
                await WorkerProcess(config, worker, server, redis, membership, stop).run()
            finally:
                _close(worker)
    finally:
        await redis.close()


def _told_how_long_it_took(hello: WorkerHello) -> WorkerHello:
    """Ready now: by this, routers tell callers when the worker may be back if it is lost."""
    start_s = since_boot_s() - this_process().created_at_s
    return replace(hello, start_s=min(max(start_s, 0.0), MAX_START_S))


def _close(worker: Worker) -> None:
    worker.parts.close(_CLOSE_TIMEOUT_S)


class WorkerProcess:
    """Everything that lives as long as the process."""

    def __init__(
        self,
        config: WorkerConfig,
        worker: Worker,
        server: BoundServer,
        redis: RedisConnection,
        membership: Membership,
        stop: StopRequested,
    ) -> None:
        self._config = config
        self._worker = worker
        self._server = server
        self._stop = stop
        self._clock = MonotonicClock()
        self._membership = membership
        self._ledger = RedisLedger(redis, cluster=config.cluster_name)
        hello = _told_how_long_it_took(worker.hello)
        # Why another life has our name, once one has.
        self._replaced_by: str | None = None
        self._life = WorkerLife(WorkerId(config.worker_id), hello.incarnation)
        self._sessions = WorkerSessions(
            hello, worker.inbox.put, worker.parts.prepare_peer, load=worker.parts.core.load
        )
        self._engine: EngineLoop = worker.engine_loop(self._sessions.deliver)
        self._sessions.pulse = self._engine.pulse
        self._engine.on_prefixes = self._sessions.deliver_prefixes
        stall = StallSettings(config.engine_stall_s, config.engine_stall_per_token_s)
        self._watchdog = Watchdog(
            self._sessions, self._engine.pulse, server.health, stall, self._clock
        )
        self._loop = asyncio.get_running_loop()
        self._engine.on_failure = self._engine_failed
        if worker.ranks is not None:
            try:
                worker.ranks.watch(self._engine_failed)
            except RankLost as error:
                raise StartupError(str(error)) from error
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self._sessions, server.server)

    async def run(self) -> None:
        """Serve until the stop event, then drain."""
        self._engine.start()
        await self._server.start()
        registration = Registration(
            self._membership,
            self._record(),
            ttl_s=self._config.lease_ttl_s,
            after_renewal=self._set_capacity,
        )
        try:
            # Capacity first: whoever sees the worker may reserve on it.
            await self._set_capacity()
            await registration.start()
        except (ClusterError, StaleIncarnation) as error:
            await self._leave(registration)
            raise StartupError(error.message) from error
        watcher = asyncio.create_task(self._stop_when_replaced(registration), name="registration")
        watchdog = asyncio.create_task(self._watchdog.run(), name="watchdog")
        watchdog.add_done_callback(self._watchdog_ended)
        self._server.health.set_ready(SERVICE_NAME, True)
        log.info("worker_listening", port=self._server.port)
        try:
            await self._stop.wait()
            self._server.health.set_ready(SERVICE_NAME, False)
            if self._failure is None:
                await self._drain()
        finally:
            watchdog.cancel()
            await self._leave(registration)
            await asyncio.wait([watcher, watchdog], timeout=_CLOSE_TIMEOUT_S)
        if isinstance(self._failure, RankLost):
            raise StartupError(str(self._failure))
        if self._failure is not None:
            raise RuntimeError("the engine thread failed; see the log above")
        if self._replaced_by is not None:
            raise StartupError(self._replaced_by)

    @property
    def _failure(self) -> BaseException | None:
        """Why nothing can be computed any more; a rank may be lost before the engine notices."""
        loss = None if self._worker.ranks is None else self._worker.ranks.loss
        return self._engine.failure or loss

    def _engine_failed(self) -> None:
        """End, told by any thread."""
        # The engine thread may wait for an event; it looks at what was lost when it wakes up.
        self._worker.inbox.put(None)
        self._loop.call_soon_threadsafe(self._stop.set)

    def _record(self) -> WorkerRecord:
        hello = self._worker.hello
        return WorkerRecord(
            worker_id=hello.worker_id,
            incarnation=hello.incarnation,
            role=self._config.role,
            address=f"{self._config.reachable_host}:{self._server.port}",
            num_blocks=hello.num_blocks,
            block_size=hello.block_size,
            compatibility=hello.compatibility,
            model=self._worker.model_name,
            model_fingerprint=hello.model_fingerprint,
            started_at_ns=wall_time_ns(),
            process=this_process(),
        )

    async def _stop_when_replaced(self, registration: Registration) -> None:
        """Two processes of one name would take each other's work: the older one goes."""
        error = await registration.wait_lost()
        if error is not None:
            self._replaced_by = error.message
            self._stop.set()

    def _watchdog_ended(self, task: asyncio.Task[None]) -> None:
        """Without it a stuck worker would look like a healthy one."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("watchdog_failed", exc_info=error)
            self._stop.set()

    async def _set_capacity(self) -> None:
        hello = self._worker.hello
        shares = Shares(growth_reserve=hello.num_growth_blocks)
        await self._ledger.set_capacity(self._life, hello.num_blocks, shares)

    async def _drain(self) -> None:
        """Get no new tasks; let those there are end within the time given."""
        self._sessions.drain()
        now = self._clock.now()
        settled_at_s, deadline_at_s = now + _SETTLE_S, now + self._config.drain_timeout_s
        # The core belongs to the engine thread, which announces nothing: look now and then.
        while now < deadline_at_s and (self._engine.num_tasks or now < settled_at_s):
            if self._failure is not None:
                return
            await asyncio.sleep(0.02)
            now = self._clock.now()
        log.info("drained", num_tasks_handed_back=self._engine.num_tasks)

    async def _leave(self, registration: Registration) -> None:
        await registration.stop()
        try:
            await self._ledger.worker_lost(self._life)
        except (ClusterError, StaleIncarnation) as error:
            log.warning("deregistration_failed", error=error.message)
        self._sessions.end_all()
        await self._server.stop(grace_s=1.0)
        if not await asyncio.to_thread(self._engine.stop, _CLOSE_TIMEOUT_S):
            log.warning("engine_still_running", waited_s=_CLOSE_TIMEOUT_S)
