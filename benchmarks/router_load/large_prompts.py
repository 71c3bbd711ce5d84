"""Large prompts through one router, some at a time; prints one line of JSON a repeat.

    python -m benchmarks.router_load.large_prompts --port P --pid PID [--calls 8 --bytes 400000]

MB are 10**6 bytes of the prompts as they travel.
"""

import argparse
import asyncio
import json
import time
from typing import Any

import grpc

from benchmarks.router_load.client import PATH, Tally, figures
from benchmarks.router_load.processes import cpu_seconds
from benchmarks.router_load.prompts import request_of
from tandemserve.api.v1 import inference_pb2 as pb

_CALL_TIMEOUT_S = 60.0


async def _call_again_and_again(generate: Any, request: bytes, tally: list[Tally]) -> None:
    while True:
        began_at_s = time.perf_counter()
        num_tokens = 0
        try:
            async for response in generate(request, timeout=_CALL_TIMEOUT_S):
                if response.WhichOneof("event") == "delta":
                    num_tokens += len(response.delta.token_ids)
                    tally[0].ttft_s.append(time.perf_counter() - began_at_s)
        except grpc.aio.AioRpcError as error:
            raise SystemExit(f"a large prompt was refused: {error.details()}") from None
        tally[0].num_failed += num_tokens != 1
        tally[0].num_requests += 1
        tally[0].num_tokens += num_tokens
        tally[0].latency_s.append(time.perf_counter() - began_at_s)


async def _run(arguments: argparse.Namespace) -> None:
    request = request_of(arguments.bytes, arguments.kind)
    tally = [Tally()]
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{arguments.port}", options) as channel:
        generate: Any = channel.unary_stream(
            PATH, response_deserializer=pb.GenerateResponse.FromString
        )
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(_call_again_and_again(generate, request, tally))
                for _ in range(arguments.calls)
            ]
            await asyncio.sleep(arguments.warm_s)
            for _ in range(arguments.repeats):
                tally[0] = Tally()
                print(json.dumps(await _measure(arguments, tally)), flush=True)
            for call in calls:
                call.cancel()


async def _measure(arguments: argparse.Namespace, tally: list[Tally]) -> dict[str, float]:
    began_at_s, own_s = time.perf_counter(), time.process_time()
    busy_s = cpu_seconds(arguments.pid)
    await asyncio.sleep(arguments.seconds)
    wall_s = time.perf_counter() - began_at_s
    busy_s, own_s = cpu_seconds(arguments.pid) - busy_s, time.process_time() - own_s
    num_mb = tally[0].num_requests * arguments.bytes / 1e6
    found = figures(tally[0], wall_s, busy_s, own_s)
    found["prompt_mb_s"] = num_mb / wall_s
    found["cpu_s_per_prompt_mb"] = busy_s / num_mb if num_mb else 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the router's")
    parser.add_argument("--calls", type=int, default=8, help="under way at a time")
    parser.add_argument("--bytes", type=int, default=400_000, help="of each prompt")
    parser.add_argument("--kind", choices=("ids", "text"), default="ids")
    parser.add_argument("--warm-s", type=float, default=0.8)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=1)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
