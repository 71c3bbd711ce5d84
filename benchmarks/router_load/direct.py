"""Asks a fake prefill worker for first tokens without a router: what a router adds to.

    python -m benchmarks.router_load.direct --port P --pid PID --rate 800

One session, as a router would hold it, at the rate and with the client of the router's own load.
"""

import argparse
import json
import selectors
import time
from dataclasses import dataclass, field

from benchmarks.router_load.client import TOKEN_IDS, Tally, figures
from benchmarks.router_load.http2 import Connection
from benchmarks.router_load.processes import cpu_seconds
from runtime.wire import (
    ReportBatch,
    RouterHello,
    decode_response,
    encode_commands,
    encode_router_hello,
)
from scheduling.ids import Incarnation, RouterId, TaskId
from scheduling.messages import PROTOCOL_VERSION, SequenceSpec, StartPrefill, TokensEmitted
from scheduling.sampling import SamplingParams, StopParams
from tandemserve.internal.v1 import worker_pb2 as pb

PATH = "/tandemserve.internal.v1.WorkerService/Session"
_HELLO = RouterHello(PROTOCOL_VERSION, RouterId("direct"), Incarnation(1), Incarnation(1))
_SEQUENCE = SequenceSpec(
    TOKEN_IDS,
    (),
    SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=1),
    StopParams(1, (), ()),
)


@dataclass(slots=True)
class DirectClient:
    """Sends prompts at a steady rate over one session and notes when their tokens come."""

    port: int
    interval_s: float
    tally: Tally = field(default_factory=Tally)
    _began_at_s: dict[TaskId, float] = field(default_factory=dict)
    _number: int = 0
    _next_start_at_s: float = 0.0

    def run(self, warm_s: float, seconds: float, repeats: int, pid: int) -> None:
        """Print one line of JSON a repeat."""
        connection = Connection(self.port, PATH, self._on_message, self._on_end)
        session = connection.call(encode_router_hello(_HELLO).SerializeToString(), is_last=False)
        selector = selectors.DefaultSelector()
        selector.register(connection, selectors.EVENT_READ)
        self._run_until(time.perf_counter() + warm_s, connection, session, selector)
        for _ in range(repeats):
            self.tally = Tally()
            began_at_s, busy_s, own_s = time.perf_counter(), cpu_seconds(pid), time.process_time()
            self._run_until(began_at_s + seconds, connection, session, selector)
            wall_s = time.perf_counter() - began_at_s
            busy_s, own_s = cpu_seconds(pid) - busy_s, time.process_time() - own_s
            print(json.dumps(figures(self.tally, wall_s, busy_s, own_s)), flush=True)
        connection.close()

    def _run_until(
        self,
        end_at_s: float,
        connection: Connection,
        session: int,
        selector: selectors.BaseSelector,
    ) -> None:
        while (now := time.perf_counter()) < end_at_s:
            self._next_start_at_s = self._next_start_at_s or now
            while self._next_start_at_s <= now:
                self._next_start_at_s += self.interval_s
                self._number += 1
                task_id = TaskId(f"direct/{self._number}")
                command = encode_commands([StartPrefill(task_id, _SEQUENCE)]).SerializeToString()
                self._began_at_s[task_id] = time.perf_counter()
                connection.send(session, command)
            waits_s = min(end_at_s, self._next_start_at_s) - time.perf_counter()
            if selector.select(max(0.0, waits_s)):
                connection.receive()

    def _on_message(self, stream_id: int, message: bytes) -> None:
        frame = decode_response(pb.SessionResponse.FromString(message))
        if not isinstance(frame, ReportBatch):
            return
        now = time.perf_counter()
        self.tally.num_messages += 1
        for report in frame.reports:
            if isinstance(report, TokensEmitted):
                took_s = now - self._began_at_s.pop(report.task_id)
                self.tally.num_requests += 1
                self.tally.num_tokens += 1
                self.tally.latency_s.append(took_s)
                self.tally.ttft_s.append(took_s)

    def _on_end(self, stream_id: int) -> None:
        raise SystemExit("the fake worker ended the session")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the fake workers'")
    parser.add_argument("--rate", type=float, required=True, help="prompts a second")
    parser.add_argument("--warm-s", type=float, default=0.8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    client = DirectClient(arguments.port, 1 / arguments.rate)
    client.run(arguments.warm_s, arguments.seconds, arguments.repeats, arguments.pid)


if __name__ == "__main__":
    main()
