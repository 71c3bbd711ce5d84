"""The router's end of one worker's session: dial, greet, commands out, reports in, redial.

A session that breaks ends every task on it: the worker drops them, the core starts them elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from runtime.grpc_server import build_channel
from runtime.logging import get_logger
from runtime.wire import (
    ProtocolError,
    ReportBatch,
    RouterHello,
    decode_response,
    encode_commands,
    encode_peer,
    encode_router_hello,
)
from scheduling.ids import Incarnation, RouterId, WorkerId
from scheduling.messages import (
    PROTOCOL_VERSION,
    AdmitGeneration,
    Command,
    KvExport,
    PushTo,
    StartDecode,
    StartPrefill,
    WorkerHello,
)
from tandemserve.internal.v1 import worker_pb2_grpc

log = get_logger()

# A worker that lets this many commands pile up does not read; the session is given up.
_MAX_UNSENT_COMMANDS = 100_000
_DOES_NOT_READ = "does not read its commands"
# More than any token id, and than the rest of a command, takes in a frame.
_BYTES_PER_TOKEN, _BYTES_PER_COMMAND = 5, 4096


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Who dials, and how patiently."""

    router_id: RouterId
    router_incarnation: Incarnation
    model_fingerprint: str
    connect_timeout_s: float
    max_message_bytes: int


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
        self._outbox: asyncio.Queue[Command | KvExport | None] = asyncio.Queue()
        self._call: Any = None
        self._task = asyncio.create_task(self._run(), name=f"link-{worker_id}")

    def send(self, command: Command | KvExport) -> None:
        """Queue a command, or a pool that the worker will push into.

        Silently void when the session is down, since its tasks are gone.
        """
        if self.state != "ready":
            return
        if self._outbox.qsize() >= _MAX_UNSENT_COMMANDS:
            self._set("lost", _DOES_NOT_READ)
            if self._call is not None:
                self._call.cancel()
            return
        self._outbox.put_nowait(command)

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=self._settings.connect_timeout_s)

    async def _run(self) -> None:
        pause_s = 0.05
        while True:
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
                self._set("lost", _DOES_NOT_READ)  # the call was cancelled, not the link
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
            try:
                responses = aiter(call)
                hello = await asyncio.wait_for(
                    self._greeting(responses), settings.connect_timeout_s
                )
                self._set("ready", "")
                self._events.connected(hello)
                try:
                    async for response in responses:
                        batch = decode_response(response)
                        if isinstance(batch, WorkerHello):
                            raise ProtocolError("frame", "is a second hello")
                        self._events.reports(self.worker_id, batch)
                finally:
                    self._events.lost(self.worker_id, self.incarnation)
            finally:
                # Lets the generator of requests end by itself: cancelling a call that is over
                # would leave it waiting for ever.
                self._outbox.put_nowait(None)
                call.cancel()

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
                "serves another model than the router; start both with the same --model"
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
            )
        )
        outbox = self._outbox
        while True:
            commands: list[Command] = []
            num_bytes = 0
            item = await outbox.get()
            while True:
                if item is None:
                    return  # the session is over
                if isinstance(item, KvExport):
                    yield encode_peer(item)
                else:
                    commands.append(item)
                    num_bytes += _size_bound(item)
                # A frame above the limit would break the session and every task on it.
                if outbox.empty() or num_bytes > settings.max_message_bytes // 4:
                    break
                item = outbox.get_nowait()
            if commands:
                yield encode_commands(commands)

    def _set(self, state: str, problem: str) -> None:
        if (state, problem) != (self.state, self.problem):
            log.info("worker_link", worker_id=self.worker_id, state=state, problem=problem)
        self.state, self.problem = state, problem


def _size_bound(command: Command) -> int:
    match command:
        case StartPrefill() | AdmitGeneration():
            num_tokens = command.sequence.num_tokens
        case StartDecode():
            num_tokens = len(command.output_token_ids)
        case PushTo():
            num_tokens = 3 * len(command.target.block_ids)
        case _:
            num_tokens = 0
    return _BYTES_PER_COMMAND + _BYTES_PER_TOKEN * num_tokens


class IncompatibleWorker(Exception):
    """The worker cannot serve this router's requests in its present life."""
