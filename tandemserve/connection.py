"""The synchronous half of the I/O: one lazily opened channel, shared by all threads.

It is a gRPC channel of its own, not the asyncio client behind a thread: grpc.aio does not take
two event loops in one process well, and the caller may run one.
"""

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol, TypeVar, cast

import grpc

from tandemserve.api.v1 import inference_pb2
from tandemserve.channel import channel_credentials, channel_options
from tandemserve.errors import ClientClosed
from tandemserve.pump import Waiter, run_aside
from tandemserve.queries import GENERATE_PATH, Query
from tandemserve.rpc_errors import RpcFailure, error_from_rpc
from tandemserve.settings import Settings, closed_error

T = TypeVar("T")
Sleep = Callable[[float], object]


class ResponseStream(Protocol):
    """A running `Generate` call."""

    def __iter__(self) -> Iterator[inference_pb2.GenerateResponse]: ...

    def __next__(self) -> inference_pb2.GenerateResponse: ...

    def cancel(self) -> bool: ...


class Connection:
    """Opens calls and performs queries. Thread-safe; belongs to the process that first uses it."""

    # Those that must be closed before the interpreter stops its threads wherever they are.
    _open: ClassVar["weakref.WeakSet[Connection]"] = weakref.WeakSet()

    def __init__(self, settings: Settings, sleep: Sleep | None) -> None:
        self.settings = settings
        # Replaces the wait between attempts; None waits really.
        self.sleep = sleep
        self._lock = threading.Lock()
        # Which of the routers is spoken to, and a channel to each that was.
        self.route = settings.route()
        self._channel_by_target: dict[str, grpc.Channel] = {}
        self._pid: int | None = None
        self._is_closed = False
        # One for each query in progress: closing ends its wait for another attempt.
        self._waiters: set[Waiter] = set()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def generate(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None, target: str
    ) -> ResponseStream:
        """Start a call. Raises: ClientClosed."""
        method = self._open_channel(target).unary_stream(
            GENERATE_PATH,
            request_serializer=inference_pb2.GenerateRequest.SerializeToString,
            response_deserializer=inference_pb2.GenerateResponse.FromString,
        )
        try:
            call = method(
                request,
                timeout=timeout_s,
                metadata=self.settings.metadata,
                compression=grpc.Compression.NoCompression,
            )
        except ValueError:  # closed by another thread since the line above
            self.raise_if_closed()
            raise
        return cast(ResponseStream, call)

    def query(self, query: Query[T]) -> T:
        """Perform a unary call, repeated where that helps. Raises: TandemError."""
        self.raise_if_closed()
        waiter = Waiter(self.sleep)
        self._waiters.add(waiter)
        try:
            return run_aside(lambda: self._query(query, waiter))
        finally:
            self._waiters.discard(waiter)

    def _query(self, query: Query[T], waiter: Waiter) -> T:
        settings = self.settings
        attempts = settings.query_attempts()
        while True:
            timeout_s = attempts.remaining_s(settings.now())
            target = self.route.target
            method = self._open_channel(target).unary_unary(
                query.path,
                request_serializer=type(query.request).SerializeToString,
                response_deserializer=query.response_class.FromString,
            )
            try:
                response = method(
                    query.request,
                    timeout=timeout_s,
                    metadata=settings.metadata,
                    compression=grpc.Compression.NoCompression,
                )
            except ValueError:
                self.raise_if_closed()
                raise
            except grpc.RpcError as failure:
                self.raise_if_closed()
                error = error_from_rpc(cast(RpcFailure, failure), target=target)
                delay_s = attempts.delay_after(error, settings.now())
                self.route.leave(target)
                waiter.wait(delay_s)
            else:
                return query.parse(response)

    def close(self) -> None:
        """Cancel what runs and close the channel; closing twice is harmless."""
        self._is_closed = True
        self._open.discard(self)
        for waiter in list(self._waiters):
            waiter.wake()
        with self._lock:
            channels, self._channel_by_target = self._channel_by_target, {}
            is_inherited = self._pid not in (None, os.getpid())
        # A child must not touch the connection that its parent still uses.
        if not is_inherited:
            for channel in channels.values():
                channel.close()

    def _open_channel(self, target: str) -> grpc.Channel:
        with self._lock:
            self.raise_if_closed()
            if self._pid is None:
                self._pid = os.getpid()
                self._open.add(self)
            elif self._pid != os.getpid():
                raise ClientClosed(
                    "the client was used before this process was forked from its parent; "
                    "make a new one after the fork"
                )
            if target not in self._channel_by_target:
                self._channel_by_target[target] = self._connect(target)
            return self._channel_by_target[target]

    def _connect(self, target: str) -> grpc.Channel:
        settings = self.settings
        options = channel_options(target)
        if settings.tls is None:
            return grpc.insecure_channel(target, options=options)
        credentials = channel_credentials(settings.tls)
        return grpc.secure_channel(target, credentials, options=options)

    def raise_if_closed(self) -> None:
        """Raises: ClientClosed."""
        if self.is_closed:
            raise closed_error()

    @classmethod
    def close_all(cls) -> None:
        """Close what the program left open."""
        for connection in list(cls._open):
            connection.close()


atexit.register(Connection.close_all)
