"""The worker's gRPC service: one bidirectional stream for each router, everything over it.

Runs on the event loop. Commands go to the engine's inbox; reports come from the engine thread and
are queued here for each session. A router that does not read is cut off, not waited for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from runtime.logging import get_logger
from runtime.wire import (
    ProtocolError,
    RouterHello,
    decode_request,
    encode_reports,
    encode_worker_hello,
)
from scheduling.messages import PROTOCOL_VERSION, KvExport, Report, WorkerHello, WorkerLoad
from scheduling.worker_events import (
    CommandArrived,
    SendReport,
    SessionId,
    SessionLost,
    WorkerEvent,
)
from tandemserve.internal.v1 import worker_pb2_grpc

log = get_logger()

SERVICE_NAME = "tandemserve.internal.v1.WorkerService"
# A router that lets this many frames pile up is wedged: at ten milliseconds an iteration, more
# than half a minute of reports.
_MAX_UNSENT_FRAMES = 4096
_HELLO_TIMEOUT_S = 10.0
# A router with no task here learns of a change of the load this late; with one, at once.
_LOAD_INTERVAL_S = 0.1

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Session:
    """One router's open stream."""

    session_id: SessionId
    router_id: str
    # Encoded frames; None asks the writer to end the stream.
    outbox: asyncio.Queue[Any]
    overflowed: bool = False
    # The last load that it was sent.
    told: WorkerLoad | None = None


class WorkerSessions(worker_pb2_grpc.WorkerServiceServicer):
    """Accepts routers and knows which session each report goes to."""

    def __init__(
        self,
        hello: WorkerHello,
        post: Callable[[WorkerEvent], None],
        prepare_peer: Callable[[KvExport], None] = lambda export: None,
    ) -> None:
        self._hello = hello
        self._post = post
        # Told which pools this worker will push into; must not block.
        self._prepare_peer = prepare_peer
        self._session_by_id: dict[SessionId, _Session] = {}
        self._next_id = 1
        self._loop = asyncio.get_running_loop()
        self._load = WorkerLoad(hello.num_blocks, 0, 0, 0)
        # Set while some router has yet to hear of the present load.
        self._sharing: asyncio.TimerHandle | None = None
        self._is_leaving = False

    @property
    def num_sessions(self) -> int:
        """Connected routers."""
        return len(self._session_by_id)

    def deliver(self, reports: list[SendReport], load: WorkerLoad) -> None:
        """Take the reports of one iteration; called on the engine thread, returns at once."""
        try:
            self._loop.call_soon_threadsafe(self._route, reports, load)
        except RuntimeError:
            # The event loop has closed: the process is ending and every session with it.
            log.debug("reports_after_shutdown", num_reports=len(reports))

    def drain(self) -> None:
        """Ask every router to place nothing here any more; the sessions and their tasks go on."""
        self._load = replace(self._load, is_draining=True)
        self._share_load()

    def end_all(self) -> None:
        """Close every stream; routers take it for the end of this worker."""
        self._is_leaving = True
        if self._sharing is not None:
            self._sharing.cancel()
        for session in self._session_by_id.values():
            self._end(session)

    async def Session(  # noqa: N802 - the name is given by the protocol
        self, request_iterator: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        """See WorkerService.Session."""
        router_id = await self._greet(request_iterator, context)
        session = _Session(SessionId(self._next_id), router_id, asyncio.Queue())
        self._next_id += 1
        for older in [s for s in self._session_by_id.values() if s.router_id == router_id]:
            # The router has given it up, or died: only the transport does not know it yet.
            self._forget(older)
            self._end(older)
        self._session_by_id[session.session_id] = session
        self._send(session, (), self._load)
        log.info("router_connected", router_id=router_id)
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            yield encode_worker_hello(self._hello)
            while (frame := await session.outbox.get()) is not None:
                yield frame
            if session.overflowed:
                message = "the router reads too slowly; reconnect"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        finally:
            reader.cancel()
            self._forget(session)
            log.info("router_disconnected", router_id=router_id)

    async def _greet(self, requests: AsyncIterator[Any], context: Context) -> str:
        try:
            first = await asyncio.wait_for(anext(requests), _HELLO_TIMEOUT_S)
            hello = decode_request(first)
        except (TimeoutError, StopAsyncIteration, ProtocolError) as error:
            message = f"no hello came: {error or type(error).__name__}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        if not isinstance(hello, RouterHello):
            message = "the first frame must be a hello"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        if hello.protocol_version != PROTOCOL_VERSION:
            message = (
                f"worker speaks protocol {PROTOCOL_VERSION}, router {hello.router_id} speaks "
                f"{hello.protocol_version}; run one version of Tandem"
            )
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        if hello.worker_incarnation != self._hello.incarnation or self._is_leaving:
            message = (
                f"this is life {self._hello.incarnation} of {self._hello.worker_id}, life "
                f"{hello.worker_incarnation} was asked for; look the worker up again"
            )
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        return hello.router_id

    async def _read(self, session: _Session, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                frame = decode_request(request)
                if isinstance(frame, RouterHello):
                    raise ProtocolError("frame", "is a second hello")
                if isinstance(frame, KvExport):
                    self._prepare_peer(frame)
                    continue
                for command in frame:
                    self._post(CommandArrived(session.session_id, command))
        except ProtocolError as error:
            log.error("bad_command_frame", router_id=session.router_id, error=str(error))
        except grpc.aio.AioRpcError as error:
            log.info("router_stream_broke", router_id=session.router_id, code=error.code().name)
        finally:
            # Whatever ended the reading: a session that hears no commands is none.
            self._end(session)

    def _route(self, reports: list[SendReport], load: WorkerLoad) -> None:
        self._load = replace(load, is_draining=self._load.is_draining)
        by_session: dict[SessionId, list[Any]] = {}
        for report in reports:
            by_session.setdefault(report.session_id, []).append(report.report)
        for session_id, own in by_session.items():
            session = self._session_by_id.get(session_id)
            if session is not None:  # else the router left; its tasks end with SessionLost
                self._send(session, own, self._load)
        if self._sharing is None and not self._is_leaving and self._is_news():
            self._sharing = self._loop.call_later(_LOAD_INTERVAL_S, self._share_load)

    def _is_news(self) -> bool:
        return any(session.told != self._load for session in self._session_by_id.values())

    def _share_load(self) -> None:
        """Tell routers without tasks of their own here what others left free."""
        self._sharing = None
        for session in self._session_by_id.values():
            if session.told != self._load:
                self._send(session, (), self._load)

    def _send(self, session: _Session, reports: Sequence[Report], load: WorkerLoad) -> None:
        if session.overflowed:
            return
        if session.outbox.qsize() >= _MAX_UNSENT_FRAMES:
            session.overflowed = True
            self._end(session)
            return
        session.told = load
        for frame in encode_reports(reports, load):
            session.outbox.put_nowait(frame)

    def _forget(self, session: _Session) -> None:
        """Its tasks end; harmless when repeated."""
        if self._session_by_id.pop(session.session_id, None) is not None:
            self._post(SessionLost(session.session_id))

    def _end(self, session: _Session) -> None:
        if session.overflowed:
            while not session.outbox.empty():
                session.outbox.get_nowait()
        session.outbox.put_nowait(None)
