"""What a client saw, and the figures made of it."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.end_to_end.workload import Ask, Load

# Yields the number of new tokens whenever some arrive.
Stream = Callable[[Ask], AsyncIterator[int]]


@dataclass(slots=True)
class Seen:
    """Instants that the clients of one load noted, in seconds."""

    ttfts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_messages: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """One load on one server. Times in milliseconds."""

    server: str
    num_clients: int
    num_requests: int
    tokens_per_s: float
    ttft_p50: float
    ttft_p99: float
    # Gaps between messages; a message holds tokens_per_message tokens on average.
    itl_p50: float
    itl_p99: float
    tokens_per_message: float
    seconds: float
    # Of the load generator itself, in all its threads.
    client_cpu_s: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def run_load(server: str, stream: Stream, load: Load) -> Figures:
    """Let the clients work through the load. Raises: RuntimeError when an answer is too short."""
    seen = Seen()
    todo = iter(load.asks)
    started, cpu = time.perf_counter(), _cpu_s()
    await asyncio.gather(*(_client(stream, todo, seen) for _ in range(load.num_clients)))
    seconds = time.perf_counter() - started
    if seen.num_tokens != load.num_output_tokens:
        raise RuntimeError(
            f"{server} answered {seen.num_tokens} tokens where {load.num_output_tokens} were asked"
        )
    return Figures(
        server=server,
        num_clients=load.num_clients,
        num_requests=len(load.asks),
        tokens_per_s=seen.num_tokens / seconds,
        ttft_p50=_quantile_ms(seen.ttfts, 0.5),
        ttft_p99=_quantile_ms(seen.ttfts, 0.99),
        itl_p50=_quantile_ms(seen.gaps, 0.5),
        itl_p99=_quantile_ms(seen.gaps, 0.99),
        tokens_per_message=seen.num_tokens / max(1, seen.num_messages),
        seconds=seconds,
        client_cpu_s=_cpu_s() - cpu,
    )


async def _client(stream: Stream, todo: Iterator[Ask], seen: Seen) -> None:
    for ask in todo:
        last = time.perf_counter()
        is_first = True
        async for num_tokens in stream(ask):
            now = time.perf_counter()
            (seen.ttfts if is_first else seen.gaps).append(now - last)
            last, is_first = now, False
            seen.num_tokens += num_tokens
            seen.num_messages += 1


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _quantile_ms(values: list[float], share: float) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]
