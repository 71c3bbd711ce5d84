"""A grpc.aio server that takes the calls of a router and does nothing: what gRPC itself costs.

    python -m benchmarks.router_load.bare_server --port P

It reads each request as bytes, parses nothing, and answers one token.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from runtime.grpc_server import DEFAULT_MAX_MESSAGE_BYTES
from tandemserve.api.v1 import inference_pb2 as pb

SERVICE = "tandemserve.api.v1.InferenceService"
_ANSWER = pb.GenerateResponse(delta=pb.Delta(token_ids=[5])).SerializeToString()


async def _generate(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield _ANSWER


async def serve(port: int) -> None:
    """Until the process is ended."""
    limits = [("grpc.max_receive_message_length", DEFAULT_MAX_MESSAGE_BYTES)]
    server = grpc.aio.server(options=limits)
    generate: Any = grpc.unary_stream_rpc_method_handler(_generate)
    handler = grpc.method_handlers_generic_handler(SERVICE, {"Generate": generate})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
