"""Bytes that are no message end their call with INVALID_ARGUMENT, whatever method they came to.

gRPC parses a message beneath our methods: what it cannot parse would be UNKNOWN to the caller and
a traceback in the log. Every server of `runtime/grpc_server.py` looks after its messages here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from runtime.grpc_errors import MalformedMessage, abort_with

Context = grpc.aio.ServicerContext[Any, Any]


class MalformedMessageCheck(grpc.aio.ServerInterceptor):
    """Refuses what its method cannot read; a method without a deserializer reads for itself."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's own handler, but for a message that is none."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return _checked(handler, handler_call_details.method)


def _checked(
    handler: "grpc.RpcMethodHandler[Any, Any]", method: str
) -> "grpc.RpcMethodHandler[Any, Any]":
    parse: Any = handler.request_deserializer

    def read(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            raise MalformedMessage(method) from None

    serializer = handler.response_serializer
    if handler.request_streaming:
        # The error is raised into the method, where it takes its next message.
        if handler.response_streaming:
            stream = _many(handler.stream_stream, _as_it_is)
            return grpc.stream_stream_rpc_method_handler(stream, read, serializer)
        single = _one(handler.stream_unary, _as_it_is)
        return grpc.stream_unary_rpc_method_handler(single, read, serializer)
    # The method gets what was parsed, so the bytes come as far as here.
    if handler.response_streaming:
        stream = _many(handler.unary_stream, read)
        return grpc.unary_stream_rpc_method_handler(stream, None, serializer)
    single = _one(handler.unary_unary, read)
    return grpc.unary_unary_rpc_method_handler(single, None, serializer)


def _one(inner: Any, read: Callable[[Any], Any]) -> Any:
    async def answer(given: Any, context: Context) -> Any:
        try:
            return await inner(read(given), context)
        except MalformedMessage as error:
            await abort_with(context, error)

    return answer


def _many(inner: Any, read: Callable[[Any], Any]) -> Any:
    async def answers(given: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async with aclosing(inner(read(given), context)) as responses:
                async for response in responses:
                    yield response
        except MalformedMessage as error:
            await abort_with(context, error)

    return answers


def _as_it_is(requests: Any) -> Any:
    return requests
