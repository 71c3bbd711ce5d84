"""What is no message ends its call in one way, whatever kind of method it was sent to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.grpc_server import BoundServer, ServerOptions, build_channel, build_server
from runtime.testing import captured_log

SERVICE = "test.Echo"
TIMEOUT_S = 60.0
# By the name of the method: how its handler is made, and how it is called.
KINDS = {
    "OneOne": (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    "OneMany": (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    "ManyOne": (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    "ManyMany": (grpc.stream_stream_rpc_method_handler, "stream_stream"),
    "ManyManyRead": (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}
GOOD = StringValue(value="hi").SerializeToString()
# A field that ends too early; no field at all; text that is none.
BAD = {"cut": GOOD[:-1], "noise": b"\xff\xff\xff", "no text": b"\x0a\x01\xff"}


class Echo:
    """Every kind of method there is; each answers what it was sent."""

    async def one_one(self, request: Any, _: Any) -> Any:
        return request

    async def one_many(self, request: Any, _: Any) -> AsyncIterator[Any]:
        yield request
        yield request

    async def many_one(self, requests: AsyncIterator[Any], _: Any) -> Any:
        return StringValue(value="".join([request.value async for request in requests]))

    async def many_many(self, requests: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    async def many_many_read(self, _: Any, context: Any) -> AsyncIterator[Any]:
        while (request := await context.read()) is not grpc.aio.EOF:
            yield request


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[BoundServer, grpc.aio.Channel]]:
    echo = Echo()
    methods = dict(
        zip(
            KINDS,
            (echo.one_one, echo.one_many, echo.many_one, echo.many_many, echo.many_many_read),
            strict=True,
        )
    )
    handlers = {
        name: make(
            methods[name],
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
        for name, (make, _) in KINDS.items()
    }
    bound = build_server(ServerOptions("127.0.0.1", 0, max_message_bytes=100_000), [])
    bound.server.add_registered_method_handlers(SERVICE, handlers)
    await bound.start()
    try:
        async with build_channel(f"127.0.0.1:{bound.port}") as channel:
            yield bound, channel
    finally:
        await bound.stop(grace_s=0)


async def say(
    channel: grpc.aio.Channel, method: str, part: bytes | AsyncIterator[bytes]
) -> list[bytes]:
    """All answers to a message, or to several. Raises: AioRpcError."""
    _, kind = KINDS[method]
    call = getattr(channel, kind)(f"/{SERVICE}/{method}")
    is_stream = kind.startswith("stream") and isinstance(part, bytes)
    asked = call(iter([part]) if is_stream else part, timeout=TIMEOUT_S)
    if kind.endswith("unary"):
        return [await asked]
    return [answer async for answer in asked]


@pytest.mark.parametrize("method", KINDS)
async def test_messages_that_are_whole_pass(method: str) -> None:
    async with echoing() as (_, channel):
        answers = await say(channel, method, GOOD)
    assert answers == [GOOD] * (2 if method == "OneMany" else 1)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", KINDS)
async def test_what_is_no_message_is_refused_plainly_with_one_line(method: str, bad: str) -> None:
    async with echoing() as (_, channel):
        with captured_log() as log:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await say(channel, method, BAD[bad])
            assert await say(channel, method, GOOD)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    said = caught.value.details() or ""
    assert said == f"request: is no message of /{SERVICE}/{method}; use a client of this API"
    (line,) = log.lines
    assert (line["event"], line["method"]) == ("malformed_message", f"/{SERVICE}/{method}")
    assert line["peer"].startswith("ipv4:127.0.0.1")


@pytest.mark.parametrize("method", [name for name in KINDS if name.startswith("Many")])
async def test_a_later_message_ends_the_call_behind_what_came_before_it(method: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield GOOD
        yield BAD["cut"]
        await asyncio.Event().wait()  # the caller does not end it

    async with echoing() as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel, method, parts())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_another_stream_of_the_same_connection_goes_on() -> None:
    async with echoing() as (_, channel):
        call: Any = channel.stream_stream(f"/{SERVICE}/ManyMany")()
        await call.write(GOOD)
        assert await asyncio.wait_for(call.read(), TIMEOUT_S) == GOOD
        with pytest.raises(grpc.aio.AioRpcError):
            await say(channel, "ManyMany", BAD["noise"])
        await call.write(GOOD)
        assert await asyncio.wait_for(call.read(), TIMEOUT_S) == GOOD
        call.cancel()


async def test_a_caller_who_leaves_a_stream_ends_its_method() -> None:
    """Nothing of a method stays behind what looks after its messages."""
    has_ended = asyncio.Event()

    async def endless(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield StringValue(value="x" * 1000)
        finally:
            has_ended.set()

    handler = grpc.unary_stream_rpc_method_handler(
        endless, StringValue.FromString, StringValue.SerializeToString
    )
    bound = build_server(ServerOptions("127.0.0.1", 0), [])
    bound.server.add_registered_method_handlers(SERVICE, {"Endless": handler})
    await bound.start()
    async with build_channel(f"127.0.0.1:{bound.port}") as channel:
        endlessly: Any = channel.unary_stream(f"/{SERVICE}/Endless")
        call = endlessly(GOOD)
        assert await asyncio.wait_for(call.read(), TIMEOUT_S)
        call.cancel()
        await asyncio.wait_for(has_ended.wait(), TIMEOUT_S)
    await bound.stop(grace_s=0)


async def test_health_is_a_service_like_any_other() -> None:
    async with echoing() as (_, channel):
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(b"\xff", timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        asked = health_pb2.HealthCheckRequest()
        answer = await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_any_bytes_are_answered_or_refused_and_nothing_else() -> None:
    parts = (
        st.binary(max_size=40)
        | st.builds(lambda at: GOOD[:at], st.integers(0, len(GOOD)))
        | st.just(bytes(100_001))
    )

    async def ask_all(asked: list[tuple[str, bytes]]) -> None:
        async with echoing() as (_, channel):
            with captured_log() as log:
                for method, part in asked:
                    code = await code_of(channel, method, part)
                    assert code in {
                        grpc.StatusCode.OK,
                        grpc.StatusCode.INVALID_ARGUMENT,
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                    }, (method, part[:50])
                    assert (code is grpc.StatusCode.RESOURCE_EXHAUSTED) == (len(part) > 100_000)
        # gRPC's poller is the process's own: it may still complain of an earlier test's loop.
        events = {line["event"] for line in log.lines if line.get("logger") != "asyncio"}
        assert events <= {"malformed_message"}

    @settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), parts), min_size=1, max_size=30))
    def ask(asked: list[tuple[str, bytes]]) -> None:
        loop.run(ask_all(asked))

    with asyncio.Runner() as loop:
        ask()


async def code_of(channel: grpc.aio.Channel, method: str, part: bytes) -> grpc.StatusCode:
    try:
        await say(channel, method, part)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
