"""The asyncio half of the I/O: one channel, opened on the event loop of the first call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import grpc
from grpc import aio

from tandemserve.api.v1 import inference_pb2
from tandemserve.channel import channel_credentials, channel_options
from tandemserve.queries import GENERATE_PATH, Query
from tandemserve.rpc_errors import error_from_rpc
from tandemserve.settings import Settings, closed_error

T = TypeVar("T")
AsyncSleep = Callable[[float], Awaitable[object]]


class AsyncResponseStream(Protocol):
    """A running `Generate` call."""

    def __aiter__(self) -> AsyncIterator[inference_pb2.GenerateResponse]: ...

    def cancel(self) -> bool: ...


def is_task_cancelled() -> bool:
    """Whether a CancelledError was meant for this task: gRPC also raises it for a closed call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncConnection:
    """Opens calls and performs queries, all on one event loop."""

    def __init__(self, settings: Settings, sleep: AsyncSleep | None) -> None:
        self.settings = settings
        self._sleep = sleep
        # Which of the routers is spoken to, and a channel to each that was.
        self.route = settings.route()
        self._channel_by_target: dict[str, aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    async def wait(self, seconds: float, woken: asyncio.Event) -> None:
        """Wait before another attempt; ends early when the event is set."""
        if self._sleep is not None:
            await self._sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            return

    def generate(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None, target: str
    ) -> AsyncResponseStream:
        """Start a call. Raises: ClientClosed; RuntimeError outside of the client's event loop."""
        method = self._open_channel(target).unary_stream(
            GENERATE_PATH,
            request_serializer=inference_pb2.GenerateRequest.SerializeToString,
            response_deserializer=inference_pb2.GenerateResponse.FromString,
        )
        call = method(
            request,
            timeout=timeout_s,
            metadata=self.settings.metadata,
            compression=grpc.Compression.NoCompression,
        )
        return cast(AsyncResponseStream, call)

    async def query(self, query: Query[T]) -> T:
        """Perform a unary call, repeated where that helps. Raises: TandemError."""
        settings = self.settings
        attempts = settings.query_attempts()
        while True:
            timeout_s = attempts.remaining_s(settings.now())
            target = self.route.target
            method: Any = self._open_channel(target).unary_unary(
                query.path,
                request_serializer=type(query.request).SerializeToString,
                response_deserializer=query.response_class.FromString,
            )
            try:
                response = await method(
                    query.request,
                    timeout=timeout_s,
                    metadata=settings.metadata,
                    compression=grpc.Compression.NoCompression,
                )
            except asyncio.CancelledError:
                if self.is_closed and not is_task_cancelled():
                    raise closed_error() from None
                raise
            except aio.AioRpcError as failure:
                if self.is_closed:
                    raise closed_error() from None
                error = error_from_rpc(failure, target=target)
                delay_s = attempts.delay_after(error, settings.now())
                self.route.leave(target)
                await self.wait(delay_s, self._closed)
            else:
                return query.parse(response)

    async def close(self) -> None:
        """Cancel what runs and close the channel; closing twice is harmless."""
        self._closed.set()
        channels, self._channel_by_target = self._channel_by_target, {}
        for channel in channels.values():
            await channel.close()

    def _open_channel(self, target: str) -> aio.Channel:
        if self.is_closed:
            raise closed_error()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("an AsyncClient serves one event loop; make another one for this")
        if target not in self._channel_by_target:
            self._channel_by_target[target] = self._connect(target)
        return self._channel_by_target[target]

    def _connect(self, target: str) -> aio.Channel:
        settings = self.settings
        options = channel_options(target)
        if settings.tls is None:
            return aio.insecure_channel(target, options=options)
        credentials = channel_credentials(settings.tls)
        return aio.secure_channel(target, credentials, options=options)
