"""The router's end of a session, against a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from router.testing import hello_of
from router.worker_link import LinkEvents, LinkSettings, WorkerLink
from runtime.wire import encode_worker_hello
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId
from scheduling.messages import CancelTask, WorkerHello
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


def senders() -> set["asyncio.Task[Any]"]:
    """Tasks of the gRPC library that wait for a session's next command."""
    return {
        task
        for task in asyncio.all_tasks()
        if "_consume_request_iterator" in getattr(task.get_coro(), "__qualname__", "")
    }


class DeafWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Greets each router and reads nothing of what it is sent."""

    async def Session(  # noqa: N802 - the name is given by the protocol
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        yield encode_worker_hello(HELLO)
        await asyncio.Event().wait()


@dataclass
class Line:
    """A link to a worker in this process, and what it told the router."""

    link: WorkerLink
    greeted: "asyncio.Queue[WorkerHello]"
    lost: "asyncio.Queue[WorkerId]"


@asynccontextmanager
async def line_to(worker: worker_pb2_grpc.WorkerServiceServicer) -> AsyncIterator[Line]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
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
    try:
        yield Line(link, greeted, lost)
    finally:
        await link.close()
        await server.stop(0)


async def test_a_session_that_ended_leaves_no_sender_behind_and_is_dialled_again() -> None:
    async with line_to(BriefWorker()) as line:
        for _ in range(4):
            assert await asyncio.wait_for(line.greeted.get(), PATIENCE_S) == HELLO
            assert await asyncio.wait_for(line.lost.get(), PATIENCE_S) == HELLO.worker_id
    # One that was about to write when its call ended is told so by the library, a little later.
    if left := senders():
        _, left = await asyncio.wait(left, timeout=PATIENCE_S)
    assert not left


async def test_a_worker_that_reads_no_commands_loses_its_session_and_is_dialled_again() -> None:
    command = CancelTask(TaskId("r/0~1"), "test")
    async with line_to(DeafWorker()) as line:
        assert await asyncio.wait_for(line.greeted.get(), PATIENCE_S) == HELLO
        num_sent = 0
        while line.link.state == "ready" and num_sent < 200_000:
            line.link.send(command)
            num_sent += 1
        # Heartbeats wait in the same line.
        assert 99_990 <= num_sent <= 100_001
        assert (line.link.state, line.link.problem) == ("lost", "does not read its commands")
        # The tasks of the session are over, and what waited was for them: none of it is left.
        assert await asyncio.wait_for(line.lost.get(), PATIENCE_S) == HELLO.worker_id
        assert await asyncio.wait_for(line.greeted.get(), PATIENCE_S) == HELLO
        assert line.link.state == "ready"
        line.link.send(command)
        assert line.link.state == "ready"
