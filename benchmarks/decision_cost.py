"""What a decision costs, in microseconds and bytes, by how many tasks wait in the router.

    python -m benchmarks.decision_cost [--sizes 10,1000,100000,1000000] [--policy A,B]
        [--workers N] [--out FILE] [--quick]

All workers are full and `size` prompts wait. Per request: it arrives; it is begun where another one
has ended, from that worker's frame to the command. Per iteration: a frame with the next token of 32
answers; a worker's plan of 32 answers and what it makes of their tokens. Beside them, a look at the
queues of which nothing comes. Time is of the processor, with the collector set as routers set it;
memory is what the process took for the queue, with a process for each row.
"""

import argparse
import gc
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.record import spread, write_results
from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from router.core import RouterCore
from router.events import (
    Action,
    Extend,
    ExtensionAnswered,
    ReportsArrived,
    RequestArrived,
    RequestSpec,
    ReservationAnswered,
    Reserve,
    SendCommand,
    TimeReached,
    WorkerConnected,
)
from router.state import RouterSettings
from runtime.collector import spare_the_collector
from scheduling.ids import Incarnation, RequestId, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    PROTOCOL_VERSION,
    AdmitGeneration,
    AdmitPrompt,
    DecodeStarted,
    Report,
    SequenceSpec,
    StartDecode,
    TaskReleased,
    TokensEmitted,
    WorkerHello,
    WorkerLoad,
)
from scheduling.policies import POLICIES
from scheduling.prefix_chain import PromptPrefix
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CommandArrived,
    KvArrived,
    SampledOutput,
    SessionId,
    StepFinished,
)

SIZES = (10, 1_000, 100_000, 1_000_000)
NUM_RUNNING, BLOCK_SIZE = 32, 16
PROMPT, MAX_TOKENS = (0,) * 1_000, 200
NUM_BLOCKS = NUM_RUNNING * -(-(len(PROMPT) + MAX_TOKENS + 1) // BLOCK_SIZE)
# Of each kind, in each size.
NUM_OPERATIONS = 500


class Router:
    """A core whose workers are full; it plays ledger and workers."""

    def __init__(self, policy: str, num_workers: int, size: int) -> None:
        settings = RouterSettings(max_prompt_queue=size + 10_000_000, max_backlog_tokens=10**9)
        self.core = RouterCore(POLICIES[policy], POLICIES[policy].new_predictor(), settings)
        self.now = 0.0
        # Answers that run, the longest running first.
        self.running: dict[WorkerId, deque[TaskId]] = {}
        self._number = 0
        for number in range(num_workers):
            hello = hello_of(f"mixed-{number}")
            self.running[hello.worker_id] = deque()
            self.core.handle(WorkerConnected(hello), 0.0)

    def arrive(self) -> None:
        self._number += 1
        spec = RequestSpec(
            request_id=RequestId(str(self._number)),
            prompt_token_ids=PROMPT,
            sampling=SamplingParams(),
            stop=StopParams(MAX_TOKENS),
            num_choices=1,
            tenant="default",
            session="",
            request_class="standard",
            ttft_s=1e6,
            tpot_s=0.1,
            deadline_s=None,
            prefix=PromptPrefix((), ""),
            known_output_tokens=MAX_TOKENS,
        )
        self.now += 1e-4
        self._perform(self.core.handle(RequestArrived(spec), self.now))

    def replace(self, worker_id: WorkerId) -> None:
        """The answer that runs longest ends, and another is begun in its place, or several, as far
        as the policy sees room."""
        task_id = self.running[worker_id].popleft()
        sequence = self.core.state.sequence_by_task[task_id]
        end = TokensEmitted(task_id, len(sequence.output_token_ids), (5,), "x", (), "stop")
        self._tell(worker_id, (end, TaskReleased(task_id)))

    def emit(self, worker_id: WorkerId) -> None:
        """One token for each answer of the worker."""
        sequences = self.core.state.sequence_by_task
        self._tell(
            worker_id,
            tuple(
                TokensEmitted(task_id, len(sequences[task_id].output_token_ids), (5,), "x")
                for task_id in self.running[worker_id]
            ),
        )

    def look(self) -> None:
        self._perform(self.core.handle(TimeReached(), self.now))

    def _tell(self, worker_id: WorkerId, reports: tuple[Report, ...]) -> None:
        # What is free, the router's own promises say.
        load = WorkerLoad(NUM_BLOCKS, NUM_RUNNING, 0, 0)
        self._perform(self.core.handle(ReportsArrived(worker_id, reports, load), self.now))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Reserve(claim, preferences):
                    answer = ReservationAnswered(claim, *preferences[0])
                    self._perform(self.core.handle(answer, self.now))
                case Extend(claim, num_blocks):
                    granted = ExtensionAnswered(claim, num_blocks, granted=True)
                    self._perform(self.core.handle(granted, self.now))
                case SendCommand(worker_id, StartDecode(task_id, _, place)):
                    self.running[worker_id].append(task_id)
                    if place is not None:
                        self._tell(worker_id, (DecodeStarted(task_id),))
                case SendCommand(worker_id, AdmitPrompt(task_id) as prompt):
                    if not prompt.is_answer_held:
                        self.running[worker_id].append(task_id)
                    first = TokensEmitted(task_id, 0, (5,), "x")
                    load = self.core.state.fleet.get(worker_id)
                    assert load is not None
                    frame = ReportsArrived(worker_id, (first,), load.load)
                    self._perform(self.core.handle(frame, self.now))


def hello_of(worker_id: str) -> WorkerHello:
    return WorkerHello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=WorkerId(worker_id),
        incarnation=Incarnation(1),
        role="mixed",
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_seqs=NUM_RUNNING,
        compatibility="same",
        model_fingerprint="model",
    )


class Worker:
    """A decode core with as many running answers."""

    def __init__(self) -> None:
        export = KvExport("none", "", 10**6, 1, WorkerId("d"), Incarnation(1), "here")
        settings = DecodeSettings(10**5, BLOCK_SIZE, NUM_RUNNING, prefix_caching=False)
        self.core = DecodeCore(settings, export)
        for number in range(NUM_RUNNING):
            task_id = TaskId(f"{number}")
            spec = SequenceSpec(PROMPT, (), SamplingParams(), StopParams(10**5))
            admit = AdmitGeneration(task_id, spec, 1_000, 63, f"{number}")
            self.core.handle(CommandArrived(SessionId(1), admit))
            self.core.handle(CommandArrived(SessionId(1), StartDecode(task_id, (5,))))
            self.core.handle(KvArrived(task_id))

    def iterate(self) -> None:
        _, plan = self.core.plan(0.0)
        assert plan is not None
        outputs = tuple(SampledOutput(chunk.slot, 5, "x") for chunk in plan.chunks)
        self.core.handle(StepFinished(outputs))
        _ = self.core.load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--policy", default="default,ecoserve,cacheopt,accelgen,fcfs")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    args = parser.parse_args()
    sizes = [10, 1_000] if args.quick else [int(size) for size in args.sizes.split(",")]
    iteration = by_operation(Worker().iterate)
    figures: dict[str, Any] = {"worker's iteration": iteration}
    print(f"a worker's iteration of {NUM_RUNNING} answers: {shown(iteration)}")
    # A process for each: what another one left behind would be taken for free memory.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for policy in args.policy.split(","):
            for size in sizes:
                measured = processes.submit(measure, policy, args.workers, size).result()
                figures[f"{policy}, {size} wait"] = measured
                if args.out is not None:
                    write_results(args.out, {"microseconds": figures}, (), args.quick)


def measure(policy: str, num_workers: int, size: int) -> dict[str, Any]:
    spare_the_collector()
    router = Router(policy, num_workers, size)
    before = rss_bytes()
    while len(router.core.state.prompt_queue) < size:
        router.arrive()
    gc.collect()
    num_bytes = rss_bytes() - before
    workers = turns(list(router.running))
    figures: dict[str, Any] = {
        "a request arrives": by_operation(router.arrive),
        "one ends, one begins": by_operation(lambda: router.replace(next(workers))),
        "a frame of tokens": by_operation(lambda: router.emit(next(workers))),
        "a look in vain": by_operation(router.look),
    }
    cells = ", ".join(f"{what} {shown(values)}" for what, values in figures.items())
    print(f"{policy}, {size:,} wait: {cells}; {num_bytes / 2**20:,.1f} MiB", flush=True)
    return {**figures, "MiB": round(num_bytes / 2**20, 1)}


def turns(workers: list[WorkerId]) -> Iterator[WorkerId]:
    while True:
        yield from workers


def by_operation(operate: Callable[[], object]) -> list[float]:
    """Median microseconds, of the processor, of each of five rounds."""
    medians = []
    for _ in range(5):
        elapsed = []
        for _ in range(NUM_OPERATIONS // 5):
            start_ns = time.thread_time_ns()
            operate()
            elapsed.append((time.thread_time_ns() - start_ns) / 1e3)
        medians.append(statistics.median(elapsed))
    return medians


def shown(values: list[float]) -> str:
    return f"{spread(values, 0)} us"


def rss_bytes() -> int:
    """Of the process now; its highest, where the system tells no other."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
