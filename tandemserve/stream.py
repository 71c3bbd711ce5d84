"""The events of one generation, for synchronous code. The decisions are in `generation.py`."""

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self, cast

import grpc

from tandemserve.connection import Connection, ResponseStream
from tandemserve.errors import TandemError
from tandemserve.generation import Generation
from tandemserve.results import Accepted, Completion, Event
from tandemserve.rpc_errors import RpcFailure
from tandemserve.settings import closed_error

__all__ = ["Stream"]


class Stream(Iterator[Event]):
    """Yields each Delta once, then one Finished for each answer.

    The request is on its way when this exists. Leaving the `with` block, Ctrl-C or dropping the
    stream cancels what is still running. One thread reads; any thread may cancel.
    """

    def __init__(self, connection: Connection, generation: Generation) -> None:
        self._connection = connection
        self._generation = generation
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._is_ended = False
        self._failure: TandemError | None = None
        self._call: ResponseStream = self._start()

    @property
    def request_id(self) -> str:
        """Known from the start; repeating the request with it attaches to this one."""
        return self._generation.request_id

    @property
    def accepted(self) -> Accepted | None:
        """Model, prompt length and seed; None until the first event."""
        return self._generation.accepted

    def completion(self) -> Completion:
        """Read to the end and return all answers whole. Raises: TandemError."""
        for _ in self:
            pass
        return self._generation.completion()

    def cancel(self) -> None:
        """Stop the request; the reader gets RequestCancelled. Harmless when it has ended."""
        self._cancelled.set()
        with self._lock:
            self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._is_ended:
            raise StopIteration
        if self._failure is not None:
            raise self._failure
        try:
            event = self._advance()
        except BaseException as error:  # Ctrl-C included: nobody will read on
            self.cancel()
            if isinstance(error, TandemError):
                self._failure = error
            else:
                self._failure = self._generation.cancelled()
            raise
        if event is None:
            self._is_ended = True
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def _advance(self) -> Event | None:
        """The next event; None at the end."""
        while True:
            try:
                response = next(self._call)
            except StopIteration:
                self._generation.end()
                return None
            except grpc.RpcError as failure:
                if not self._recover(cast(RpcFailure, failure)):
                    return None
                continue
            event = self._generation.receive(response)
            if event is not None:
                return event

    def _recover(self, failure: RpcFailure) -> bool:
        """Wait and start another attempt; False when none is needed. Raises: TandemError."""
        if self._cancelled.is_set():
            raise self._generation.cancelled()
        if self._connection.is_closed:
            raise closed_error()
        delay_s = self._generation.fail(failure, self._connection.settings.now())
        if delay_s is None:
            return False
        self._connection.wait(delay_s, self._cancelled)
        with self._lock:
            self._call = self._start()
        return True

    def _start(self) -> ResponseStream:
        if self._cancelled.is_set():
            raise self._generation.cancelled()
        timeout_s = self._generation.begin(self._connection.settings.now())
        return self._connection.generate(self._generation.request, timeout_s)
