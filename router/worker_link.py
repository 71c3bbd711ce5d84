"""The router's end of one worker's session: dial, greet, commands out, reports in, redial.

A session that breaks ends every task on it: the worker drops them, the core starts them elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from router.command_frames import Outgoing, frames
from runtime.clock import MonotonicClock
from runtime.grpc_server import build_channel
from runtime.logging import get_logger
from runtime.silence import Silence
from runtime.wire import (
    Heartbeat,
    HeartbeatAnswer,
    ProtocolError,
    ReportBatch,
    RouterHello,
    decode_response,
    encode_router_hello,
)
from scheduling.ids import Incarnation, RouterId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import PROTOCOL_VERSION, Command, SetAdmission, WorkerHello
from tandemserve.internal.v1 import worker_pb2_grpc

log = get_logger()

# A worker that lets this many commands pile up does not read; the session is given up.
_MAX_UNSENT_COMMANDS = 100_000
_DOES_NOT_READ = "does not read its commands"


# Over all links of this life: a later session has the larger number.
_session_numbers = count(1)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Who dials, and how patiently."""

    router_id: RouterId
    router_incarnation: Incarnation
    model_fingerprint: str
    connect_timeout_s: float
    max_message_bytes: int
    # How often the worker is asked for a sign of life, and after which silence it counts as lost.
    heartbeat_interval_s: float = 0.5
    heartbeat_timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """Where the link reports to; all called on the event loop."""

    connected: Callable[[WorkerHello], None]
    reports: Callable[[WorkerId, ReportBatch], None]
    lost: Callable[[WorkerId, Incarnation], None]


class WorkerLink:
    """One life of one worker. Runs until `close`, redialling while the worker is registered."""

    def __init__(
        self,
        worker_id: WorkerId,
        incarnation: Incarnation,
        role: str,
        address: str,
        settings: LinkSettings,
        events: LinkEvents,
    ) -> None:
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.role = role
        self.address = address
        # "connecting", "ready", "incompatible" or "lost", with the reason.
        self.state = "connecting"
        self.problem = ""
        self._settings = settings
        self._events = events
        self._outbox: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._call: Any = None
        # Why this side cancelled the call.
        self._cut_because = ""
        self._num_sessions = 0
        # What the worker last said of its engine; None before.
        self.engine: HeartbeatAnswer | None = None
        self._task = asyncio.create_task(self._run(), name=f"link-{worker_id}")

    def send(self, command: Command | KvExport | SetAdmission) -> None:
        """Queue a command, or a pool that the worker will push into.

        Silently void when the session is down, since its tasks are gone.
        """
        if self.state != "ready":
            return
        if self._outbox.qsize() >= _MAX_UNSENT_COMMANDS:
            self._set("lost", _DOES_NOT_READ)
            self._cut(_DOES_NOT_READ)
            return
        self._outbox.put_nowait(command)

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=self._settings.connect_timeout_s)

    async def _run(self) -> None:
        pause_s = 0.05
        while True:
            num_before = self._num_sessions
            try:
                await self._session()
                self._set("lost", "the worker closed the session")
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                self._set("lost", f"{error.code().name}: {details[:200]}")
            except TimeoutError:
                self._set("lost", f"no answer in {self._settings.connect_timeout_s:g} s")
            except ProtocolError as error:
                self._set("lost", f"speaks another protocol: {error}")
            except IncompatibleWorker as error:
                self._set("incompatible", str(error))
                log.error("worker_incompatible", worker_id=self.worker_id, problem=self.problem)
                return  # a worker does not change its model during one life
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._set("lost", self._cut_because)  # the call was cancelled, not the link
            if self._num_sessions > num_before:
                pause_s = 0.05
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)

    async def _session(self) -> None:
        settings = self._settings
        async with build_channel(
            self.address, max_message_bytes=settings.max_message_bytes
        ) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            self._outbox = asyncio.Queue()
            call: Any = stub.Session(self._requests())
            self._call = call
            beating: asyncio.Task[None] | None = None
            try:
                responses = aiter(call)
                # Not wait_for: it would leave the error of a broken call with a task nobody asks.
                async with asyncio.timeout(settings.connect_timeout_s):
                    hello = await self._greeting(responses)
                self._num_sessions += 1
                self._set("ready", "")
                clock = MonotonicClock()
                silence = Silence(
                    settings.heartbeat_interval_s, settings.heartbeat_timeout_s, clock.now()
                )
                beating = asyncio.create_task(self._beat(silence, clock))
                self._events.connected(hello)
                try:
                    async for response in responses:
                        batch = decode_response(response)
                        if isinstance(batch, HeartbeatAnswer):
                            # Nothing else counts: an answer shows that both directions work.
                            silence.heard()
                            self.engine = batch
                            continue
                        if isinstance(batch, WorkerHello):
                            raise ProtocolError("frame", "is a second hello")
                        self._events.reports(self.worker_id, batch)
                finally:
                    self._events.lost(self.worker_id, self.incarnation)
            finally:
                # Lets the generator of requests end by itself: cancelling a call that is over
                # would leave it waiting for ever.
                self._outbox.put_nowait(None)
                if beating is not None:
                    beating.cancel()
                call.cancel()

    async def _beat(self, silence: Silence, clock: MonotonicClock) -> None:
        """Ask for a sign of life until there is none."""
        for number in count(1):
            self._outbox.put_nowait(Heartbeat(number))
            await asyncio.sleep(self._settings.heartbeat_interval_s)
            if silence.look(clock.now()):
                limit_s = self._settings.heartbeat_timeout_s
                log.warning("worker_silent", worker_id=self.worker_id, limit_s=limit_s)
                self._cut(f"no sign of life for {limit_s:g} s")
                return

    def _cut(self, why: str) -> None:
        self._cut_because = why
        if self._call is not None:
            self._call.cancel()

    async def _greeting(self, responses: AsyncIterator[Any]) -> WorkerHello:
        try:
            hello = decode_response(await anext(responses))
        except StopAsyncIteration:
            raise ProtocolError("hello", "is missing") from None
        if not isinstance(hello, WorkerHello):
            raise ProtocolError("frame", "is not a hello")
        if hello.worker_id != self.worker_id or hello.incarnation != self.incarnation:
            raise ProtocolError("hello", f"is of {hello.worker_id} life {hello.incarnation}")
        if hello.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleWorker(f"speaks protocol {hello.protocol_version}")
        if hello.model_fingerprint != self._settings.model_fingerprint:
            raise IncompatibleWorker(
                "serves another model than the router; start both with the same --model and "
                "--max-model-len"
            )
        if hello.max_message_bytes < self._settings.max_message_bytes:
            raise IncompatibleWorker(
                f"takes messages of {hello.max_message_bytes} bytes, the router sends up to "
                f"{self._settings.max_message_bytes}; give both the same max_message_bytes"
            )
        return hello

    async def _requests(self) -> AsyncIterator[Any]:
        settings = self._settings
        yield encode_router_hello(
            RouterHello(
                PROTOCOL_VERSION,
                settings.router_id,
                settings.router_incarnation,
                self.incarnation,
                next(_session_numbers),
                settings.heartbeat_timeout_s,
                reads_openings=True,
            )
        )
        async for frame in frames(self._outbox, settings.max_message_bytes):
            yield frame

    def _set(self, state: str, problem: str) -> None:
        if (state, problem) != (self.state, self.problem):
            log.info("worker_link", worker_id=self.worker_id, state=state, problem=problem)
        self.state, self.problem = state, problem


class IncompatibleWorker(Exception):
    """The worker cannot serve this router's requests in its present life."""
