"""The router's end of a session, against a real server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from router.testing import hello_of
from router.worker_link import LinkEvents, LinkSettings, WorkerLink
from runtime.wire import encode_worker_hello
from scheduling.ids import Incarnation, RouterId, WorkerId
from scheduling.messages import WorkerHello
from tandemserve.internal.v1 import worker_pb2_grpc

PATIENCE_S = 20.0
HELLO = hello_of("decode-0")


class BriefWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Greets each router and ends the session, as a dying worker does."""

    async def Session(  # noqa: N802 - the name is given by the protocol
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        await anext(request_iterator)
        yield encode_worker_hello(HELLO)


def waiting_senders() -> int:
    """Tasks of the gRPC library that wait for a session's next command."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return sum("_consume_request_iterator" in name for name in names)


async def test_a_session_that_ended_leaves_no_sender_behind_and_is_dialled_again() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(BriefWorker(), server)
    await server.start()
    greeted: asyncio.Queue[WorkerHello] = asyncio.Queue()
    lost: asyncio.Queue[WorkerId] = asyncio.Queue()
    settings = LinkSettings(RouterId("router-0"), Incarnation(1), "model", PATIENCE_S, 1 << 20)
    events = LinkEvents(
        connected=greeted.put_nowait,
        reports=lambda worker_id, batch: None,
        lost=lambda worker_id, life: lost.put_nowait(worker_id),
    )
    link = WorkerLink(
        HELLO.worker_id, HELLO.incarnation, "decode", f"127.0.0.1:{port}", settings, events
    )
    for _ in range(4):
        assert await asyncio.wait_for(greeted.get(), PATIENCE_S) == HELLO
        assert await asyncio.wait_for(lost.get(), PATIENCE_S) == HELLO.worker_id
    await link.close()
    await server.stop(0)
    assert waiting_senders() == 0
