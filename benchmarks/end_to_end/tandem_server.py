"""Tandem clusters as `tandem up` starts them."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.end_to_end.measure import Stream
from benchmarks.end_to_end.workload import Ask
from tandemserve import AsyncClient, Delta

_KV_CACHE_MIB = 512
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0


@asynccontextmanager
async def tandem(
    model: Path,
    workers: Mapping[str, int],
    prefill: Mapping[str, str],
    decode: Mapping[str, str],
    log: Path,
    kv_cache_mib: int = _KV_CACHE_MIB,
) -> AsyncIterator[Stream]:
    """Start the cluster and stop it.

    `workers` holds how many of each role; `prefill` and `decode` settings of the workers;
    `kv_cache_mib` is of one worker.
    """
    command = [
        *(sys.executable, "-m", "deploy.local", "up", "--json", "--model", str(model)),
        *("--port", "0", "--kv-cache-mib", str(kv_cache_mib)),
        *(f"--{role}={count}" for role, count in workers.items()),
        *(f"--prefill-worker.{name}={value}" for name, value in prefill.items()),
        *(f"--decode-worker.{name}={value}" for name, value in decode.items()),
    ]
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S)
        if not line:
            raise SystemExit(f"the cluster did not start; see {log}")
        async with AsyncClient(json.loads(line)["endpoint"]) as client:
            yield sdk_stream(client)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)


def sdk_stream(client: AsyncClient) -> Stream:
    """A function that asks through the SDK."""

    async def stream(ask: Ask) -> AsyncIterator[int]:
        options = client.stream(
            ask.prompt, max_tokens=ask.num_output, temperature=0.0, ignore_eos=True
        )
        async with options as events:
            async for event in events:
                if isinstance(event, Delta):
                    yield len(event.token_ids)

    return stream
