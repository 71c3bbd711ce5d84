"""The worker's gRPC service: one bidirectional stream for each router, everything over it.

Runs on the event loop. Commands go to the engine's inbox; reports come from the engine thread and
are queued here for each session. A router that does not read is cut off, not waited for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from runtime.clock import Clock, MonotonicClock
from runtime.grpc_errors import MalformedMessage
from runtime.logging import get_logger
from runtime.silence import Silence
from runtime.wire import (
    Heartbeat,
    HeartbeatAnswer,
    ProtocolError,
    RouterHello,
    decode_request,
    encode_heartbeat_answer,
    encode_reports,
    encode_worker_hello,
)
from scheduling.kv_export import KvExport
from scheduling.messages import (
    PROTOCOL_VERSION,
    Admission,
    Report,
    SetAdmission,
    WorkerHello,
    WorkerLoad,
)
from scheduling.prefix_index import PrefixChanges
from scheduling.worker_events import (
    CommandArrived,
    SendReport,
    SessionId,
    SessionLost,
    WorkerEvent,
)
from tandemserve.internal.v1 import worker_pb2_grpc
from worker.engine_pulse import EnginePulse
from worker.prefix_news import PrefixNews

log = get_logger()

SERVICE_NAME = "tandemserve.internal.v1.WorkerService"
# A router that lets this many frames pile up is wedged: at ten milliseconds an iteration, more
# than half a minute of reports.
_MAX_UNSENT_FRAMES = 4096
_HELLO_TIMEOUT_S = 10.0
# A router with no task here learns of a change of the load this late; with one, at once.
_LOAD_INTERVAL_S = 0.1

_READS_TOO_SLOWLY = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "the router reads too slowly; reconnect",
)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Session:
    """One router's open stream."""

    session_id: SessionId
    hello: RouterHello
    # Encoded frames; None asks the writer to end the stream.
    outbox: asyncio.Queue[Any]
    # None where the router wants no heartbeats.
    silence: Silence | None
    # Why the stream is cut off without sending what waits; None while it is not.
    cut: tuple[grpc.StatusCode, str] | None = None
    # The last load that it was sent.
    told: WorkerLoad | None = None


class WorkerSessions(worker_pb2_grpc.WorkerServiceServicer):
    """Accepts routers and knows which session each report goes to."""

    def __init__(
        self,
        hello: WorkerHello,
        post: Callable[[WorkerEvent], None],
        prepare_peer: Callable[[KvExport], None] = lambda export: None,
        clock: Clock | None = None,
        load: WorkerLoad | None = None,
    ) -> None:
        self._hello = hello
        self._post = post
        # Told which pools this worker will push into; must not block.
        self._prepare_peer = prepare_peer
        self._session_by_id: dict[SessionId, _Session] = {}
        self._next_id = 1
        self._loop = asyncio.get_running_loop()
        # What routers hear before the engine has done anything.
        self._load = load or WorkerLoad(hello.num_blocks, 0, 0, 0)
        # Set while some router has yet to hear of the present load.
        self._sharing: asyncio.TimerHandle | None = None
        self._is_leaving = False
        # Why nobody may connect at present; None where they may.
        self._closed_because: str | None = None
        self._clock = clock or MonotonicClock()
        # Told with every heartbeat; the engine's own once it is attached.
        self.pulse = EnginePulse()
        self._prefixes = PrefixNews()

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

    def deliver_prefixes(self, changes: PrefixChanges) -> None:
        """Take what changed of the prefixes; called on the engine thread, returns at once."""
        try:
            self._loop.call_soon_threadsafe(self._note_prefixes, changes)
        except RuntimeError:
            log.debug("prefixes_after_shutdown")  # as in `deliver`

    def drain(self) -> None:
        """Ask every router to place nothing here any more; the sessions and their tasks go on."""
        self._load = replace(self._load, is_draining=True)
        self._share_load()

    @property
    def is_draining(self) -> bool:
        """This life takes nothing new any more."""
        return self._load.is_draining or self._is_leaving

    def set_admission(self, admission: Admission) -> None:
        """Take new tasks or not, for the rest of this life; every router hears of it at once."""
        if admission is not self._load.admission:
            log.info("admission_changed", admission=admission.value)
            self._load = replace(self._load, admission=admission)
        self._share_load()

    def end_silent(self, now: float) -> None:
        """Give up the routers that were not heard of for longer than they promised."""
        for session in list(self._session_by_id.values()):
            if session.silence is not None and session.silence.look(now):
                silent_s = round(session.silence.silent_s, 1)
                log.warning("router_silent", router_id=session.hello.router_id, silent_s=silent_s)
                why = f"nothing was heard for {silent_s} s; connect again"
                self._cut(session, grpc.StatusCode.UNAVAILABLE, why)

    def close_doors(self, why: str) -> None:
        """End every session and its tasks, and let nobody in: what is here cannot go on."""
        self._closed_because = why
        for session in list(self._session_by_id.values()):
            self._cut(session, grpc.StatusCode.UNAVAILABLE, why)

    def open_doors(self) -> None:
        """Let routers connect again."""
        self._closed_because = None

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
        hello = await self._greet(request_iterator, context)
        router_id, timeout_s = hello.router_id, hello.heartbeat_timeout_s
        silence = Silence(timeout_s / 4, timeout_s, self._clock.now()) if timeout_s else None
        session = _Session(SessionId(self._next_id), hello, asyncio.Queue(), silence)
        self._next_id += 1
        for older in self._sessions_of(hello):
            # The router has given it up, or died: only the transport does not know it yet.
            self._forget(older)
            self._end(older)
        self._session_by_id[session.session_id] = session
        self._prefixes.open(session.session_id)
        self._send(session, (), self._load)
        log.info("router_connected", router_id=router_id)
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            yield encode_worker_hello(replace(self._hello, admission=self._load.admission))
            while (frame := await session.outbox.get()) is not None:
                yield frame
            if session.cut is not None:
                await context.abort(*session.cut)
        finally:
            reader.cancel()
            self._forget(session)
            log.info("router_disconnected", router_id=router_id)

    def _sessions_of(self, hello: RouterHello) -> list[_Session]:
        sessions = self._session_by_id.values()
        return [session for session in sessions if session.hello.router_id == hello.router_id]

    async def _greet(self, requests: AsyncIterator[Any], context: Context) -> RouterHello:
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                first = await anext(requests)
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
        if self._closed_because is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._closed_because)
        if any(_is_later(session.hello, hello) for session in self._sessions_of(hello)):
            # It lay in the socket while this process stood still.
            message = "a later session of the same router is open; nothing to do"
            await context.abort(grpc.StatusCode.ABORTED, message)
        return hello

    async def _read(self, session: _Session, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                if session.session_id not in self._session_by_id:
                    return  # given up; its tasks have ended, and no later frame begins one
                frame = decode_request(request)
                if session.silence is not None:
                    session.silence.heard()
                if isinstance(frame, Heartbeat):
                    self._answer(session, frame)
                    continue
                if isinstance(frame, RouterHello):
                    raise ProtocolError("frame", "is a second hello")
                if isinstance(frame, KvExport):
                    self._prepare_peer(frame)
                    continue
                if isinstance(frame, SetAdmission):
                    self.set_admission(frame.admission)
                    continue
                for command in frame:
                    now = self._clock.now()
                    self._post(CommandArrived(session.session_id, command, now))
        except (ProtocolError, MalformedMessage) as error:
            log.error("bad_command_frame", router_id=session.hello.router_id, error=str(error))
            self._cut(session, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except grpc.aio.AioRpcError as error:
            log.info(
                "router_stream_broke", router_id=session.hello.router_id, code=error.code().name
            )
        finally:
            # Whatever ended the reading: a session that hears no commands is none.
            self._end(session)

    def _route(self, reports: list[SendReport], load: WorkerLoad) -> None:
        self._load = replace(
            load, is_draining=self._load.is_draining, admission=self._load.admission
        )
        by_session: dict[SessionId, list[Any]] = {}
        for report in reports:
            by_session.setdefault(report.session_id, []).append(report.report)
        for session_id, own in by_session.items():
            session = self._session_by_id.get(session_id)
            if session is not None:  # else the router left; its tasks end with SessionLost
                self._send(session, own, self._load)
        self._share_later()

    def _note_prefixes(self, changes: PrefixChanges) -> None:
        self._prefixes.note(changes)
        self._share_later()

    def _share_later(self) -> None:
        is_news = any(self._has_news(session) for session in self._session_by_id.values())
        if self._sharing is None and not self._is_leaving and is_news:
            self._sharing = self._loop.call_later(_LOAD_INTERVAL_S, self._share_load)

    def _has_news(self, session: _Session) -> bool:
        return session.told != self._load or self._prefixes.is_waiting(session.session_id)

    def _share_load(self) -> None:
        """Tell routers without tasks of their own here what others left free."""
        self._sharing = None
        for session in list(self._session_by_id.values()):
            if self._has_news(session):
                self._send(session, (), self._load)

    def _send(self, session: _Session, reports: Sequence[Report], load: WorkerLoad) -> None:
        if session.cut is not None:
            return
        if session.outbox.qsize() >= _MAX_UNSENT_FRAMES:
            # Its tasks end now: its writer may be stuck in a frame that is never taken.
            self._cut(session, *_READS_TOO_SLOWLY)
            return
        is_known = session.told is not None and session.told.pass_time_error is load.pass_time_error
        session.told = load
        prefixes = self._prefixes.take(session.session_id)
        frames = encode_reports(
            reports,
            load,
            prefixes,
            has_openings=session.hello.reads_openings,
            tells_pass_times=not is_known,
        )
        for frame in frames:
            session.outbox.put_nowait(frame)

    def _forget(self, session: _Session) -> None:
        """Its tasks end; harmless when repeated."""
        if self._session_by_id.pop(session.session_id, None) is not None:
            self._prefixes.close(session.session_id)
            self._post(SessionLost(session.session_id))

    def _answer(self, session: _Session, heartbeat: Heartbeat) -> None:
        pulse = self.pulse.now()
        answer = HeartbeatAnswer(heartbeat.number, pulse.num_turns, pulse.turn_s)
        session.outbox.put_nowait(encode_heartbeat_answer(answer))

    def _cut(self, session: _Session, code: grpc.StatusCode, why: str) -> None:
        """End the session now, even if its stream never lets go of what it writes."""
        session.cut = session.cut or (code, why)
        self._forget(session)
        self._end(session)

    def _end(self, session: _Session) -> None:
        if session.cut is not None:
            while not session.outbox.empty():
                session.outbox.get_nowait()
        session.outbox.put_nowait(None)


def _is_later(known: RouterHello, newcomer: RouterHello) -> bool:
    """Whether the router had opened the known session after the one that arrives now."""
    known_age = (known.router_incarnation, known.session_number)
    return known_age > (newcomer.router_incarnation, newcomer.session_number)
