"""The events of one generation, for asyncio. The decisions are in `generation.py`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self

from grpc import aio

from tandemserve.api.v1 import inference_pb2
from tandemserve.async_connection import AsyncConnection, AsyncResponseStream, is_task_cancelled
from tandemserve.errors import TandemError
from tandemserve.generation import Generation
from tandemserve.results import Accepted, Completion, Event
from tandemserve.settings import closed_error

__all__ = ["AsyncStream"]


class AsyncStream(AsyncIterator[Event]):
    """Yields each Delta once, then one Finished for each answer.

    The request is on its way when this exists. Leaving the `async with` block, cancelling the
    reading task or dropping the stream cancels what is still running. One task reads; any may
    cancel.
    """

    def __init__(self, connection: AsyncConnection, generation: Generation) -> None:
        self._connection = connection
        self._generation = generation
        self._cancelled = asyncio.Event()
        self._is_ended = False
        self._failure: TandemError | None = None
        self._call: AsyncResponseStream
        self._responses: AsyncIterator[inference_pb2.GenerateResponse]
        # Of the newest message, what was not taken yet.
        self._news: Iterator[Event] = iter(())
        self._start()

    @property
    def request_id(self) -> str:
        """Known from the start; repeating the request with it attaches to this one."""
        return self._generation.request_id

    @property
    def accepted(self) -> Accepted | None:
        """Model, prompt length and seed; None until the server has answered."""
        return self._generation.accepted

    async def completion(self) -> Completion:
        """Read to the end and return all answers whole. Raises: TandemError."""
        async for _ in self:
            pass
        return self._generation.completion()

    def cancel(self) -> None:
        """Stop the request; the reader gets RequestCancelled. Harmless when it has ended."""
        self._cancelled.set()
        self._news = iter(())
        self._call.cancel()

    async def close(self) -> None:
        """Stop the request, as `cancel`; other clients' streams are closed by this name."""
        self.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._is_ended:
            raise StopAsyncIteration
        if self._failure is not None:
            raise self._failure
        try:
            event = await self._advance()
        except BaseException as error:  # CancelledError included: nobody will read on
            self.cancel()
            if isinstance(error, TandemError):
                self._failure = error
            else:
                self._failure = self._generation.cancelled()
            raise
        if event is None:
            self._is_ended = True
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _advance(self) -> Event | None:
        """The next event; None at the end."""
        while True:
            event = next(self._news, None)
            if event is not None:
                return event
            try:
                response = await anext(self._responses)
            except StopAsyncIteration:
                self._generation.end()
                return None
            except asyncio.CancelledError:
                if is_task_cancelled():
                    raise
                # The call was cancelled, not this task: by cancel() or by closing the client.
                self._raise_if_left()
                raise
            except aio.AioRpcError as failure:
                if not await self._recover(failure):
                    return None
                continue
            self._news = self._generation.receive(response)

    async def _recover(self, failure: aio.AioRpcError) -> bool:
        """Wait and start another attempt; False when none is needed. Raises: TandemError."""
        self._raise_if_left()
        delay_s = self._generation.fail(failure, self._connection.settings.now())
        if delay_s is None:
            return False
        self._connection.route.leave(self._generation.target)
        await self._connection.wait(delay_s, self._cancelled)
        self._raise_if_left()
        self._start()
        return True

    def _raise_if_left(self) -> None:
        if self._cancelled.is_set():
            raise self._generation.cancelled() from None
        if self._connection.is_closed:
            raise closed_error() from None

    def _start(self) -> None:
        target = self._connection.route.target
        timeout_s = self._generation.begin(self._connection.settings.now(), target)
        self._call = self._connection.generate(self._generation.request, timeout_s, target)
        self._responses = aiter(self._call)
