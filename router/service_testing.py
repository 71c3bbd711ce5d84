"""For tests: the public service over real gRPC, with a core that only notes what it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from router.events import Event
from router.inference import InferenceService, add_to_server
from router.prompt_room import PromptRoom
from router.served_model import PromptEncoder, ServedModel
from router.streams import RequestStream, StreamBook
from router.testing import CoreUnderTest
from scheduling.goals import Goals
from scheduling.ids import RequestId

# Of the one request that most tests make.
ID: Final = RequestId("r")
_PATIENCE_S: Final = 60.0


@dataclass
class ServiceDesk:
    """The service, what its core is told, and the way to it."""

    streams: StreamBook = field(default_factory=StreamBook)
    events: list[Event] = field(default_factory=list)
    # Raised in place of being told.
    refusal: Exception | None = None
    # Once it serves; Any, for the library has no types.
    service: Any = None
    channel: Any = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, event: Event) -> None:
        """What the service calls. Raises: `refusal`."""
        if self.refusal is not None:
            raise self.refusal
        self.events.append(event)
        self._news.set()

    def stream(self) -> RequestStream:
        """Of the request ID, which is there."""
        stream = self.streams.get(ID)
        assert stream is not None
        return stream

    async def told(self, event: Event | None = None) -> None:
        """Wait until the core is told so; of anything, without an event."""
        async with asyncio.timeout(_PATIENCE_S):
            while not (self.events if event is None else event in self.events):
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def serving(
    desk: ServiceDesk, model: ServedModel, room: PromptRoom | None = None
) -> AsyncIterator[None]:
    """The desk has service and channel inside the block."""
    encoder = PromptEncoder(model, num_threads=1)
    goals = {name: Goals(1.0, 0.1) for name in ("interactive", "standard", "batch")}
    core = CoreUnderTest().core
    desk.service = InferenceService(model, encoder, core, desk.streams, desk.apply, goals, room)
    server = grpc.aio.server()
    add_to_server(desk.service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as desk.channel:
            yield
    finally:
        await server.stop(0)
        encoder.close()
