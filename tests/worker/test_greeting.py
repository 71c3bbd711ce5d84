"""Sessions whose call ends while the router is still saying hello."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from runtime.wire import RouterHello, encode_router_hello
from scheduling.ids import Incarnation, RouterId, WorkerId
from scheduling.messages import PROTOCOL_VERSION, WorkerHello
from scheduling.worker_events import SessionId, SessionLost, WorkerEvent
from worker.session import WorkerSessions

PATIENCE_S = 20.0
HELLO = WorkerHello(
    PROTOCOL_VERSION, WorkerId("decode-0"), Incarnation(7), "decode", 64, 16, 4, "c", "m"
)
# Only asked to abort a call, which does not happen here.
NO_CONTEXT: Any = None


async def test_a_call_that_is_cancelled_as_its_hello_arrives_leaves_no_session() -> None:
    """Else its tasks would hold their blocks for a router that is gone."""
    posted: list[WorkerEvent] = []
    sessions = WorkerSessions(HELLO, posted.append)

    async def serve() -> None:
        async for _ in sessions.Session(requests(), NO_CONTEXT):
            pass

    async def requests() -> AsyncIterator[Any]:
        # In the very turn of the event loop that brings the hello.
        asyncio.get_running_loop().call_soon(call.cancel)
        yield encode_router_hello(
            RouterHello(
                router_id=RouterId("router-0"),
                protocol_version=PROTOCOL_VERSION,
                router_incarnation=Incarnation(1),
                worker_incarnation=Incarnation(7),
            )
        )
        await asyncio.Event().wait()  # the router says nothing more

    call = asyncio.create_task(serve())
    try:
        await asyncio.wait([call], timeout=PATIENCE_S)
        assert call.cancelled()
        assert sessions.num_sessions == 0
        assert posted == [SessionLost(SessionId(1))]
    finally:
        call.cancel()
        await asyncio.wait([call])
