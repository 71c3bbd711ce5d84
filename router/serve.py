"""The router's process: the core, its links to the workers, and the public gRPC services."""

import asyncio
from contextlib import aclosing

from cluster.errors import ClusterError
from cluster.ledger import Shares, WorkerLife
from cluster.membership import (
    MemberJoined,
    MemberLeft,
    MemberRestarted,
    Membership,
    RouterRecord,
    StoreRegained,
    WorkerRecord,
    watch,
)
from cluster.process_identity import this_process
from cluster.redis_connection import RedisConnection, connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_membership import RedisMembership
from cluster.registration import Registration
from engine.model_folder_errors import ModelFolderError
from router import inference
from router.admin import service as admin
from router.admin.service import AdminService, RouterIdentity
from router.core_setup import CoreSetup
from router.dispatcher import Dispatcher
from router.events import DrainTimedOut, ReportsArrived, WorkerConnected, WorkerLost
from router.inference import InferenceService
from router.ledger_client import LedgerClient
from router.measure import record_pass_times
from router.policy_check import PolicyCheck
from router.process_setup import core_setup_of
from router.prompt_room import PromptRoom
from router.recorder import Recorder
from router.recording.entries import RecordingHead
from router.recording.file import RECORDING_SUFFIX
from router.served_model import PromptEncoder, ServedModel, load_served_model
from router.stream_memory import StreamMemory
from router.streams import StreamBook
from router.worker_link import LinkEvents, LinkSettings, WorkerLink
from router.write_turns import BusyMeter, WriteTurns
from runtime.clock import MonotonicClock, thread_cpu_s, wall_time_ns
from runtime.collector import spare_the_collector
from runtime.config import RouterConfig
from runtime.errors import StartupError
from runtime.grpc_server import BoundServer, ServerOptions, TlsFiles, build_server
from runtime.heap import HeapTrimmer
from runtime.logging import get_logger
from runtime.policy_config import check_policy
from runtime.process import StopRequested
from runtime.telemetry import start_telemetry
from runtime.wire import ReportBatch
from scheduling.errors import StaleIncarnation
from scheduling.goals import Goals
from scheduling.ids import Incarnation, RouterId, WorkerId
from scheduling.messages import WorkerHello
from tandemserve.api.v1 import admin_pb2_grpc
from tandemserve.version import VERSION

log = get_logger()

SERVICES = (inference.SERVICE_NAME, admin.SERVICE_NAME)
# How long a broken start or an orderly end may keep a peer waiting.
_CLOSE_TIMEOUT_S = 5.0
# Joins and leaves are announced; this finds leases that ran out.
_MEMBERSHIP_POLL_S = 1.0
_MIB = 1024 * 1024


async def serve(config: RouterConfig, stop: StopRequested) -> None:
    """Serve until asked to stop, then drain. Raises: StartupError."""
    if config.redis_url is None:
        raise StartupError(
            "no Redis: give --redis-url redis://HOST:PORT, or let `tandem up` start everything"
        )
    check_policy(config)
    try:
        model = await asyncio.to_thread(
            load_served_model,
            config.model,
            config.served_model_name,
            config.max_request_chars,
            config.max_model_len,
        )
    except ModelFolderError as error:
        raise StartupError(str(error)) from error
    server = build_server(_server_options(config), SERVICES)
    try:
        redis = await connect(config.redis_url)
    except ClusterError as error:
        raise StartupError(error.message) from error
    try:
        membership = RedisMembership(redis, cluster=config.cluster_name)
        try:
            incarnation = await membership.next_incarnation(f"router {config.router_id}")
        except ClusterError as error:
            raise StartupError(error.message) from error
        await RouterProcess(config, model, server, redis, membership, incarnation, stop).run()
    finally:
        await redis.close()


class RouterProcess:
    """Everything that lives as long as the process."""

    def __init__(
        self,
        config: RouterConfig,
        model: ServedModel,
        server: BoundServer,
        redis: RedisConnection,
        membership: Membership,
        incarnation: Incarnation,
        stop: StopRequested,
    ) -> None:
        self._config = config
        self._model = model
        self._server = server
        self._stop = stop
        self._clock = MonotonicClock()
        self._incarnation = incarnation
        self._telemetry = start_telemetry("router", config.router_id, version=VERSION)
        setup = core_setup_of(config, incarnation, model.config.vocab_size)
        self._core = setup.new_core()
        self._policy_check = PolicyCheck(setup.policy)
        turns = WriteTurns(config.stream_coalesce_ms / 1e3, BusyMeter(thread_cpu_s))
        self._heap = HeapTrimmer()
        self._streams = StreamBook(
            turns=turns,
            max_stream_bytes=config.max_stream_mib * _MIB,
            memory=StreamMemory(config.all_streams_mib * _MIB, self._heap.freed),
        )
        self._dispatcher = Dispatcher(
            self._core, self._streams, self._telemetry.metrics, self._clock
        )
        self._dispatcher.on_defect = self._give_up
        self._recorder = _recorder(config, incarnation, setup)
        if self._recorder is not None:
            self._dispatcher.on_event = self._recorder.note
        self._is_defective = False
        self._ledger = LedgerClient(
            RedisLedger(redis, cluster=config.cluster_name),
            RouterId(config.router_id),
            self._incarnation,
            config.lease_ttl_s,
            answer=self._dispatcher.apply,
            held_legs=self._core.state.legs.held,
            pools=self._pools,
        )
        self._dispatcher.ask_ledger = self._ledger.perform
        self._membership = membership
        threads = config.tokenizer_threads
        self._room = PromptRoom(config.max_prompt_mib, threads, self._heap.freed)
        self._encoder = PromptEncoder(model, threads, self._room)
        self._inference = self._add_services()

    async def run(self) -> None:
        """Serve until the stop event, then drain."""
        if self._recorder is not None:
            self._recorder.start()
        await self._ledger.start()
        await self._server.start()
        registration = Registration(
            self._membership, self._record(), ttl_s=self._config.lease_ttl_s
        )
        try:
            await registration.start()
        except (ClusterError, StaleIncarnation) as error:
            await self._close()
            raise StartupError(error.message) from error
        tasks = [
            asyncio.create_task(self._ledger.keep_lease(), name="ledger-lease"),
            asyncio.create_task(self._follow_members(), name="membership"),
            asyncio.create_task(self._stop_when_replaced(registration), name="registration"),
        ]
        for task in tasks:
            task.add_done_callback(self._background_ended)
        spare_the_collector()
        log.info("router_listening", port=self._server.port, model=self._model.name)
        try:
            await self._stop.wait()
            await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
            await registration.stop()
            await self._close()
        if self._is_defective:
            raise RuntimeError("the router's core failed; see the log above")

    async def _stop_when_replaced(self, registration: Registration) -> None:
        """Two processes of one name would free each other's reservations: the older one goes."""
        error = await registration.wait_lost()
        if error is not None:
            log.error("router_replaced", problem=error.message)
            self._stop.set()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """Without its lease or its view of the workers the router would only seem to serve."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("background_task_failed", name=task.get_name(), exc_info=error)
            self._give_up()

    def _record(self) -> RouterRecord:
        return RouterRecord(
            router_id=RouterId(self._config.router_id),
            incarnation=self._incarnation,
            address=f"{self._config.host}:{self._server.port}",
            model_fingerprint=self._model.fingerprint,
            started_at_ns=wall_time_ns(),
            process=this_process(),
        )

    def _add_services(self) -> InferenceService:
        config = self._config
        service = InferenceService(
            self._model,
            self._encoder,
            self._core,
            self._streams,
            self._dispatcher.apply,
            {
                "interactive": _goals(config.interactive_ttft_ms, config.interactive_tpot_ms),
                "standard": _goals(config.standard_ttft_ms, config.standard_tpot_ms),
                "batch": _goals(config.batch_ttft_ms, config.batch_tpot_ms),
            },
            self._room,
        )
        inference.add_to_server(service, self._server.server)
        identity = RouterIdentity(config.router_id, self._model.name, config.policy_name)
        admin_service = AdminService(
            identity,
            self._core,
            self._ledger,
            self._dispatcher.link_by_worker,
            self._clock,
            self._dispatcher.apply,
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin_service, self._server.server)
        return service

    async def _drain(self) -> None:
        """Refuse new requests; let running ones end within the time given."""
        self._inference.is_draining = True
        for name in SERVICES:
            self._server.health.set_ready(name, False)
        deadline_at_s = self._clock.now() + self._config.drain_timeout_s
        while self._streams.running() and not self._is_defective:
            if self._clock.now() >= deadline_at_s:
                log.warning("drain_timed_out", num_requests=len(self._streams.running()))
                # Each caller is told why; the grace of the server is for these last words.
                self._dispatcher.apply(DrainTimedOut())
                return
            await asyncio.sleep(0.02)

    async def _close(self) -> None:
        await self._server.stop(grace_s=1.0)
        links = list(self._dispatcher.link_by_worker.values())
        for link in links:
            await link.close()
        await self._ledger.close(_CLOSE_TIMEOUT_S)
        self._encoder.close()
        self._heap.close()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close, _CLOSE_TIMEOUT_S)
        self._telemetry.shutdown()

    def _pools(self) -> list[tuple[WorkerLife, int, Shares]]:
        """What the connected workers have told the ledger of themselves."""
        return [
            (
                WorkerLife(view.hello.worker_id, view.hello.incarnation),
                view.hello.num_blocks,
                Shares(growth_reserve=view.hello.num_growth_blocks),
            )
            for view in self._core.state.fleet
        ]

    def _give_up(self) -> None:
        self._is_defective = True
        self._stop.set()

    # --- workers ------------------------------------------------------------------------------

    async def _follow_members(self) -> None:
        changes = watch(
            self._membership,
            self._clock,
            interval_s=_MEMBERSHIP_POLL_S,
            left_grace_s=self._config.lease_ttl_s,
        )
        async with aclosing(changes):
            async for change in changes:
                match change:
                    case MemberJoined(WorkerRecord() as record):
                        self._dial(record)
                    case MemberRestarted(WorkerRecord() as record, _):
                        await self._hang_up(record.worker_id)
                        self._dial(record)
                    case MemberLeft(WorkerRecord() as record):
                        await self._hang_up(record.worker_id)
                    case StoreRegained():
                        self._ledger.look_again()
                    case _:
                        log.debug("membership_changed", change=type(change).__name__)

    async def _hang_up(self, worker_id: WorkerId) -> None:
        link = self._dispatcher.link_by_worker.pop(worker_id, None)
        if link is not None:
            await link.close()

    def _dial(self, record: WorkerRecord) -> None:
        config = self._config
        settings = LinkSettings(
            router_id=RouterId(config.router_id),
            router_incarnation=self._incarnation,
            model_fingerprint=self._model.fingerprint,
            connect_timeout_s=config.worker_connect_timeout_s,
            max_message_bytes=config.max_message_bytes,
            heartbeat_interval_s=config.heartbeat_interval_s,
            heartbeat_timeout_s=config.heartbeat_timeout_s,
        )
        events = LinkEvents(self._worker_connected, self._reports_arrived, self._worker_lost)
        self._dispatcher.link_by_worker[record.worker_id] = WorkerLink(
            record.worker_id, record.incarnation, record.role, record.address, settings, events
        )

    def _worker_connected(self, hello: WorkerHello) -> None:
        log.info("worker_connected", worker_id=hello.worker_id, role=hello.role)
        if self._policy_check.is_news(hello):
            log.warning(
                "worker_policy_differs",
                worker_id=hello.worker_id,
                worker_policy=hello.policy,
                router_policy=self._config.policy_name,
                advice="give every process of the cluster the same policy and policy_set",
            )
        self._dispatcher.apply(WorkerConnected(hello))
        self._show_readiness()

    def _worker_lost(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        log.warning("worker_lost", worker_id=worker_id)
        self._dispatcher.apply(WorkerLost(worker_id, incarnation))
        self._show_readiness()

    def _reports_arrived(self, worker_id: WorkerId, batch: ReportBatch) -> None:
        arrived = ReportsArrived(worker_id, batch.reports, batch.load, batch.prefixes)
        self._dispatcher.apply(arrived)
        if batch.load.pass_time_error is not None:
            view = self._core.state.fleet.get(worker_id)
            record_pass_times(self._telemetry.metrics, view)

    def _show_readiness(self) -> None:
        """Ready means: a request could be served now."""
        can_serve = self._core.state.fleet.max_request_tokens() > 0
        self._server.health.set_ready(inference.SERVICE_NAME, can_serve)
        self._server.health.set_ready(admin.SERVICE_NAME, True)


def _recorder(config: RouterConfig, incarnation: Incarnation, setup: CoreSetup) -> Recorder | None:
    if config.record_dir is None:
        return None
    path = config.record_dir / f"{config.router_id}-{incarnation}{RECORDING_SUFFIX}"
    head = RecordingHead(VERSION, config.router_id, setup)
    return Recorder(path, head, config.record_max_mib * 2**20)


def _goals(ttft_ms: float, tpot_ms: float) -> Goals:
    return Goals(ttft_ms / 1e3, tpot_ms / 1e3)


def _server_options(config: RouterConfig) -> ServerOptions:
    tls = None
    if config.tls_cert is not None and config.tls_key is not None:
        tls = TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)
    token = config.auth_token.get_secret_value() if config.auth_token else None
    return ServerOptions(
        host=config.host,
        port=config.port,
        max_message_bytes=config.max_message_bytes,
        tls=tls,
        auth_token=token,
    )
