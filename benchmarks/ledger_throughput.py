"""How many reserve and release pairs a second the ledger carries, on a server of its own.

    python -m benchmarks.ledger_throughput [--pairs N] [--port P | --redis URL] [--json]

Client and server share this machine, so the figures are for both together.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from cluster.ledger import Claim, Release, ReserveRequest, RouterLife, WorkerLife
from cluster.redis_connection import RedisConnection, connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_server import start_server
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

NUM_TASKS = 16
BATCH = 100
ROUTER = RouterLife(RouterId("benchmark"), Incarnation(1))
WORKERS = tuple(WorkerLife(WorkerId(f"decode-{i}"), Incarnation(1)) for i in range(4))


def request(number: int) -> ReserveRequest:
    return ReserveRequest(Claim(TaskId(f"{number}/0"), "decode", number), WORKERS, 8)


def release(number: int) -> Release:
    return Release(TaskId(f"{number}/0"), number)


async def one_at_a_time(ledger: RedisLedger, first: int, num_pairs: int) -> None:
    for number in range(first, first + num_pairs):
        await ledger.reserve(ROUTER, request(number))
        await ledger.release(ROUTER, release(number))


async def concurrent(ledger: RedisLedger, first: int, num_pairs: int) -> None:
    share = num_pairs // NUM_TASKS
    starts = range(first, first + share * NUM_TASKS, share)
    await asyncio.gather(*(one_at_a_time(ledger, start, share) for start in starts))


async def pipelined(ledger: RedisLedger, first: int, num_pairs: int) -> None:
    for start in range(first, first + num_pairs, BATCH):
        numbers = range(start, start + BATCH)
        await ledger.reserve_many(ROUTER, [request(number) for number in numbers])
        await ledger.release_many(ROUTER, [release(number) for number in numbers])


MODES: dict[str, Callable[[RedisLedger, int, int], Awaitable[None]]] = {
    "sequential": one_at_a_time,
    f"{NUM_TASKS} tasks": concurrent,
    f"pipelines of {BATCH}": pipelined,
}


async def measure(connection: RedisConnection, num_pairs: int) -> dict[str, float]:
    """Pairs per second by mode."""
    ledger = RedisLedger(connection, cluster=f"benchmark-{os.getpid()}", timeout_s=30.0)
    for worker in WORKERS:
        await ledger.set_capacity(worker, 100_000)
    await ledger.renew(ROUTER, 600.0)
    pairs_per_s = {}
    first = 1
    for name, mode in MODES.items():
        began_at_s = time.perf_counter()
        await mode(ledger, first, num_pairs)
        pairs_per_s[name] = num_pairs / (time.perf_counter() - began_at_s)
        first += num_pairs
    return pairs_per_s


async def run(arguments: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        url = arguments.redis
        if url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-"))
            server = await start_server(Path(directory), port=arguments.port)
            stack.push_async_callback(server.stop)
            url = server.url
        connection = await connect(url, timeout_s=30.0, max_connections=NUM_TASKS)
        stack.push_async_callback(connection.close)
        pairs_per_s = await measure(connection, arguments.pairs)
        load = os.getloadavg()[0]
    if arguments.json:
        figures = {"server": connection.server, "pairs_per_s": pairs_per_s, "load_1min": load}
        print(json.dumps(figures))
        return
    print(f"{connection.server}, {arguments.pairs} pairs, load of the machine {load:.1f}")
    for name, rate in pairs_per_s.items():
        print(f"{name:<18} {rate:>9.0f} pairs/s  {1e6 / rate:>7.0f} us a pair")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4000, help="a multiple of 1600")
    parser.add_argument("--port", type=int, help="TCP on this port; a unix socket by default")
    parser.add_argument("--redis", help="URL of a running server")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.pairs = max(1, arguments.pairs // (NUM_TASKS * BATCH)) * NUM_TASKS * BATCH
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
