"""For tests: a TCP connection of which one direction, or both, can be made to hang."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_CHUNK_BYTES = 65_536


@dataclass
class FakeBadNetwork:
    """What lies between two processes: nothing is lost or closed, it only does not arrive.

    The kernels at both ends still acknowledge, as with a peer that was stopped.
    """

    port: int = 0
    # Cleared while that direction hangs.
    to_server: asyncio.Event = field(default_factory=asyncio.Event)
    to_client: asyncio.Event = field(default_factory=asyncio.Event)

    def flow(self) -> None:
        """Everything arrives, also what was held back."""
        self.to_server.set()
        self.to_client.set()


@asynccontextmanager
async def bad_network_to(host: str, port: int) -> AsyncIterator[FakeBadNetwork]:
    """A port on 127.0.0.1 that leads to `host:port`; everything flows at first."""
    network = FakeBadNetwork()
    network.flow()
    pumps: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, port)
        for source, sink, gate in (
            (reader, far_writer, network.to_server),
            (far_reader, writer, network.to_client),
        ):
            pump = asyncio.create_task(_pump(source, sink, gate))
            pumps.add(pump)
            pump.add_done_callback(pumps.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    network.port = server.sockets[0].getsockname()[1]
    try:
        yield network
    finally:
        server.close()
        for pump in list(pumps):
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    try:
        while data := await source.read(_CHUNK_BYTES):
            await gate.wait()
            sink.write(data)
            await sink.drain()
    except OSError:
        pass  # one end is gone: then the other end learns of it
    finally:
        sink.close()
