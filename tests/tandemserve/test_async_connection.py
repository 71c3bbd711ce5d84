"""What only the asyncio client has to bear: tasks, timeouts around it, loops that come and go."""

import asyncio
import threading
from collections.abc import AsyncIterator

import grpc
import pytest

from tandemserve import AsyncClient, RequestCancelled
from tandemserve.testing import Fail, FakeInferenceServer, Hold, accept, say

FULL = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", code="queue_full", retry_after_s=25)


@pytest.fixture
async def client(server: FakeInferenceServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target) as client:
        yield client


async def left(server: FakeInferenceServer, request_id: str) -> bool:
    return await asyncio.to_thread(server.wait_until_left, request_id)


async def until_asked(server: FakeInferenceServer) -> None:
    """The first attempt has reached the server; a moment later the client waits for the next."""
    tick = threading.Event()

    def wait() -> None:
        while not server.requests:
            tick.wait(0.01)
        tick.wait(0.2)

    await asyncio.wait_for(asyncio.to_thread(wait), 20)


async def test_many_streams_run_at_once(client: AsyncClient) -> None:
    prompts = [f"prompt {i}" for i in range(100)]
    answers = await asyncio.gather(*(client.generate(prompt) for prompt in prompts))
    assert [answer.text for answer in answers] == prompts


async def test_cancelling_the_task_cancels_the_request(
    server: FakeInferenceServer, client: AsyncClient
) -> None:
    hold = Hold()
    server.scripts.append([accept(), say(0, [1], "a"), hold])
    task = asyncio.create_task(client.generate("x", request_id="r1"))
    assert await asyncio.to_thread(hold.reached.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left(server, "r1")


async def test_a_timeout_around_the_call_stays_a_timeout(
    server: FakeInferenceServer, client: AsyncClient
) -> None:
    hold = Hold()
    server.scripts.append([accept(), hold])
    limit = asyncio.timeout(None)
    asked = asyncio.create_task(asyncio.to_thread(hold.reached.wait, 20))
    asked.add_done_callback(lambda _: limit.reschedule(0.0))
    with pytest.raises(TimeoutError):
        async with limit:
            await client.generate("x", request_id="r1")
    assert await left(server, "r1")


async def test_another_task_can_cancel_a_reader(
    server: FakeInferenceServer, client: AsyncClient
) -> None:
    hold = Hold()
    server.scripts.append([accept(), say(0, [1], "a"), hold])
    stream = client.stream("x", request_id="r1")
    await anext(stream)
    reading = asyncio.create_task(stream.__anext__())
    assert await asyncio.to_thread(hold.reached.wait, 20)
    stream.cancel()
    with pytest.raises(RequestCancelled):
        await reading
    assert await left(server, "r1")


async def test_cancel_wakes_a_stream_that_waits_for_its_next_attempt(
    server: FakeInferenceServer, client: AsyncClient
) -> None:
    server.failures.append(FULL)
    stream = client.stream("x")
    reading = asyncio.create_task(anext(stream))
    await until_asked(server)
    stream.cancel()
    with pytest.raises(RequestCancelled):
        await reading
    assert len(server.requests) == 1


async def test_closing_the_client_wakes_a_query_that_waits(server: FakeInferenceServer) -> None:
    from tandemserve import ClientClosed

    client = AsyncClient(server.target)
    server.failures.append(FULL)
    query = asyncio.create_task(client.list_models())
    await until_asked(server)
    await client.close()
    with pytest.raises(ClientClosed):
        await query


def test_a_second_event_loop_is_refused(server: FakeInferenceServer) -> None:
    client = AsyncClient(server.target)
    with asyncio.Runner() as runner:
        runner.run(client.list_models())
        with asyncio.Runner() as other, pytest.raises(RuntimeError, match="one event loop"):
            other.run(client.list_models())
        runner.run(client.close())
