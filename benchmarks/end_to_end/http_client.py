"""Streams from an OpenAI-compatible server over plain sockets: as little client as possible."""

import asyncio
import json
from collections.abc import AsyncIterator

from benchmarks.end_to_end.measure import Stream
from benchmarks.end_to_end.workload import Ask

_LINE_LIMIT = 1 << 20
_REPLY_TIMEOUT_S = 300.0


def http_stream(port: int, model: str) -> Stream:
    """A function that asks the server at 127.0.0.1:`port`."""

    async def stream(ask: Ask) -> AsyncIterator[int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE_LIMIT)
        try:
            writer.write(_request(model, ask))
            async with asyncio.timeout(_REPLY_TIMEOUT_S):
                status = await reader.readline()
                if b" 200 " not in status:
                    rest = await reader.read(2000)
                    raise RuntimeError(f"the server said {status!r}: {rest!r}")
                while line := await reader.readline():
                    if line.startswith(b"data: [DONE"):
                        break
                    if line.startswith(b"data: {"):
                        yield _num_tokens(line)
        finally:
            writer.close()

    return stream


def _num_tokens(line: bytes) -> int:
    """Tokens of one event; the server was asked to list their ids."""
    choices = json.loads(line[6:]).get("choices") or [{}]
    return len(choices[0].get("token_ids") or ())


def _request(model: str, ask: Ask) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "prompt": ask.prompt,
            "max_tokens": ask.num_output,
            "min_tokens": ask.num_output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
