"""One suite for both clients: `connect` makes either, behind the same blocking calls."""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from tandemserve import AsyncClient, AsyncStream, Client, Event
from tandemserve.testing import FakeInferenceServer


class BlockingStream:
    """An AsyncStream read from synchronous code."""

    def __init__(self, runner: asyncio.Runner, stream: AsyncStream) -> None:
        self._runner = runner
        self._stream = stream

    def __iter__(self) -> "BlockingStream":
        return self

    def __next__(self) -> Event:
        try:
            return self._runner.run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> "BlockingStream":
        self._runner.run(self._stream.__aenter__())
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._runner.run(self._stream.__aexit__(*exc_info))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._stream, name)
        if asyncio.iscoroutinefunction(value):
            return lambda *args: self._runner.run(value(*args))
        return value


class BlockingClient:
    """An AsyncClient used from synchronous code."""

    def __init__(self, runner: asyncio.Runner, client: Any) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if name == "admin":
            return BlockingClient(self._runner, value)

        def call(*args: Any, **kwargs: Any) -> Any:
            async def perform() -> Any:
                result = value(*args, **kwargs)
                return await result if asyncio.iscoroutine(result) else result

            result = self._runner.run(perform())
            return BlockingStream(self._runner, result) if name.startswith("stream") else result

        return call


class Connect(Protocol):
    """Makes a client of the kind under test; keyword arguments go to it."""

    def __call__(self, target: str | None = None, **kwargs: Any) -> Any: ...


@pytest.fixture
def server() -> Iterator[FakeInferenceServer]:
    with FakeInferenceServer() as fake:
        yield fake


@pytest.fixture
def delays() -> list[float]:
    """How long a client waited between attempts; it never really does."""
    return []


@pytest.fixture(params=["sync", "async"])
def connect(
    request: pytest.FixtureRequest, server: FakeInferenceServer, delays: list[float]
) -> Iterator[Connect]:
    closers: list[Callable[[], object]] = []

    def connect_sync(target: str | None = None, **kwargs: Any) -> Client:
        options: dict[str, Any] = {"rng": random.Random(1), "sleep": delays.append} | kwargs
        client = Client(target or server.target, **options)
        closers.append(client.close)
        return client

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    def connect_async(target: str | None = None, **kwargs: Any) -> BlockingClient:
        runner = asyncio.Runner()
        options: dict[str, Any] = {"rng": random.Random(1), "sleep": sleep} | kwargs
        client = AsyncClient(target or server.target, **options)
        closers.extend([runner.close, lambda: runner.run(client.close())])
        return BlockingClient(runner, client)

    yield connect_sync if request.param == "sync" else connect_async
    for close in reversed(closers):
        close()
