"""A closed loop of Generate calls against one router, from one process; prints one line of JSON
a repeat.

    python -m benchmarks.router_load.client --port P --calls 64 --tokens 64 [--repeats 3]

Each of the calls under way is replaced by the next one as soon as it ends. Times are seen here.
"""

import argparse
import json
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.router_load.http2 import Connection
from benchmarks.router_load.processes import cpu_seconds
from tandemserve.api.v1 import inference_pb2 as pb

PATH = "/tandemserve.api.v1.InferenceService/Generate"
CALLS_PER_CONNECTION = 64
# As long as the prompts of the peers' client; the first word differs in each.
PROMPT = (
    "{number:09d} the quick licence of the software is granted to any person who obtains a copy "
    "of this work and its documentation, without limitation of the rights to use, copy, modify, "
    "merge and publish"
)
TOKEN_IDS = tuple(range(5, 50))


@dataclass(slots=True)
class _Call:
    """One call under way."""

    began_at_s: float
    last_at_s: float = 0.0
    num_tokens: int = 0
    is_finished: bool = False


@dataclass(slots=True)
class Tally:
    """What one repeat saw. Times in seconds."""

    num_requests: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    num_messages: int = 0
    latency_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for."""

    num_calls: int
    num_tokens: int
    # Token ids instead of text: nothing to tokenise.
    is_tokenised: bool = False
    # Seconds between two calls of the whole client; 0: the next one follows at once.
    interval_s: float = 0.0
    # The first calls begin over so many seconds, or they would go on in step with one another.
    ramp_s: float = 0.0


class LoadClient:
    """Drives the connections from one thread."""

    def __init__(self, port: int, load: Load) -> None:
        self.tally = Tally()
        self._load = load
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._due: list[Connection] = []
        self._next_start_at_s = 0.0
        for first in range(0, load.num_calls, CALLS_PER_CONNECTION):
            calls: dict[int, _Call] = {}
            connection = self._connect(port, calls)
            self._selector.register(connection, selectors.EVENT_READ, (connection, calls))
            for _ in range(min(CALLS_PER_CONNECTION, load.num_calls - first)):
                self._due.append(connection)
        self._calls_of = {id(key.data[0]): key.data[1] for key in self._selector.get_map().values()}

    def close(self) -> None:
        """Drop all connections."""
        for key in list(self._selector.get_map().values()):
            key.data[0].close()
        self._selector.close()

    def run_until(self, end_at_s: float, max_requests: int | None = None) -> None:
        """Keep the calls going."""
        while (now := time.perf_counter()) < end_at_s:
            if max_requests is not None and self.tally.num_requests >= max_requests:
                return
            self._start_due(now)
            waits_s = end_at_s - now
            if self._due:
                waits_s = min(waits_s, max(0.0, self._next_start_at_s - now))
            for key, _ in self._selector.select(waits_s):
                key.data[0].receive()

    def _start_due(self, now: float) -> None:
        is_ramp = self._number < self._load.num_calls
        ramp_interval_s = self._load.ramp_s / self._load.num_calls if is_ramp else 0.0
        interval_s = ramp_interval_s or self._load.interval_s
        if not interval_s:
            due, self._due = self._due, []
            for connection in due:
                self._start(connection)
            return
        self._next_start_at_s = self._next_start_at_s or now
        while self._due and self._next_start_at_s <= now:
            self._next_start_at_s += interval_s
            self._start(self._due.pop(0))

    def _start(self, connection: Connection) -> None:
        request = self._request()
        calls = self._calls_of[id(connection)]
        began_at_s = time.perf_counter()
        calls[connection.call(request)] = _Call(began_at_s)

    def _request(self) -> bytes:
        self._number += 1
        request = pb.GenerateRequest()
        if self._load.is_tokenised:
            request.tokens.ids.extend(TOKEN_IDS)
        else:
            request.text = PROMPT.format(number=self._number)
        request.stop.max_tokens = self._load.num_tokens
        request.stop.ignore_eos = True
        request.sampling.temperature = 0.0
        request.joins_events = True  # as our own clients do
        return request.SerializeToString()

    def _connect(self, port: int, calls: dict[int, _Call]) -> Connection:
        response = pb.GenerateResponse()
        parse: Callable[[bytes], Any] = response.ParseFromString

        def on_message(stream_id: int, message: bytes) -> None:
            parse(message)
            self.tally.num_messages += 1
            for part in (response, *response.following):
                on_event(calls[stream_id], part)

        def on_event(call: _Call, part: pb.GenerateResponse) -> None:
            tally, kind = self.tally, part.WhichOneof("event")
            if kind == "delta":
                now = time.perf_counter()
                num_tokens = len(part.delta.token_ids)
                if part.delta.first_token_index != call.num_tokens:
                    raise AssertionError("the router lost or repeated a token")
                if call.num_tokens == 0:
                    tally.ttft_s.append(now - call.began_at_s)
                else:
                    tally.gap_s.append(now - call.last_at_s)
                call.num_tokens += num_tokens
                call.last_at_s = now
                tally.num_tokens += num_tokens
            elif kind == "finished":
                call.is_finished = True

        def on_end(stream_id: int) -> None:
            call, tally = calls.pop(stream_id), self.tally
            tally.num_requests += 1
            if call.is_finished and call.num_tokens == self._load.num_tokens:
                tally.latency_s.append(time.perf_counter() - call.began_at_s)
            else:
                tally.num_failed += 1
            self._due.append(connection)

        connection = Connection(port, PATH, on_message, on_end)
        return connection


def percentile(values: list[float], fraction: float) -> float:
    """The value below which that fraction lies, in milliseconds; 0 where there is none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def figures(
    tally: Tally, wall_s: float, router_cpu_s: float, client_cpu_s: float
) -> dict[str, Any]:
    """One repeat as it is printed: rates per second, times in milliseconds."""
    busy_s = max(router_cpu_s, 1e-9)
    return {
        "requests_s": tally.num_requests / wall_s,
        "failed": tally.num_failed,
        "tokens_s": tally.num_tokens / wall_s,
        "messages_s": tally.num_messages / wall_s,
        "requests_per_cpu_s": tally.num_requests / busy_s,
        "cpu_us_per_request": 1e6 * router_cpu_s / (tally.num_requests or float("inf")),
        "tokens_per_cpu_s": tally.num_tokens / busy_s,
        "cpu_us_per_token": 1e6 * router_cpu_s / (tally.num_tokens or float("inf")),
        "router_cpu": router_cpu_s / wall_s,
        "client_cpu": client_cpu_s / wall_s,
        "latency_p50_ms": percentile(tally.latency_s, 0.5),
        "latency_p99_ms": percentile(tally.latency_s, 0.99),
        "ttft_p50_ms": percentile(tally.ttft_s, 0.5),
        "ttft_p99_ms": percentile(tally.ttft_s, 0.99),
        "gap_p50_ms": percentile(tally.gap_s, 0.5),
        "gap_p99_ms": percentile(tally.gap_s, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calls", type=int, default=16, help="under way at a time")
    parser.add_argument("--tokens", type=int, default=1, help="of each answer")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second, spread evenly")
    parser.add_argument("--ramp-s", type=float, default=0.0, help="over which the calls begin")
    parser.add_argument("--tokenised", action="store_true", help="send token ids, not text")
    parser.add_argument("--warm-s", type=float, default=0.8)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pid", type=int, required=True, help="the router's")
    arguments = parser.parse_args()
    interval_s = 1 / arguments.rate if arguments.rate else 0.0
    load = Load(
        arguments.calls, arguments.tokens, arguments.tokenised, interval_s, arguments.ramp_s
    )
    client = LoadClient(arguments.port, load)
    client.run_until(time.perf_counter() + arguments.warm_s)
    for _ in range(arguments.repeats):
        client.tally = Tally()
        began_at_s, busy_s = time.perf_counter(), cpu_seconds(arguments.pid)
        own_s = time.process_time()
        client.run_until(began_at_s + arguments.seconds)
        wall_s = time.perf_counter() - began_at_s
        busy_s, own_s = cpu_seconds(arguments.pid) - busy_s, time.process_time() - own_s
        print(json.dumps(figures(client.tally, wall_s, busy_s, own_s)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
