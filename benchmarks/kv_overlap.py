"""How soon the KV of a prompt is at its decode worker, by each way to overlap it with prefill.

    python -m benchmarks.kv_overlap [--quick] [--rounds 21] [--out FILE.json]

The product's prefill core, its pushes, and its shared memory and TCP; passes take what the hardware
file says, asleep (computed elsewhere, as on a GPU) or as an amount of work for all cores of this
machine (`here`). From a prompt's arrival to its last block in the pool of the receiver, which is
when decode computes the second token. In each round `whole`, `chunk` and `auto` take their turn, in
another order; ratios are taken within a round. Sender and receiver are threads of one process.
"""

import argparse
import queue
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import Target, print_targets, spread, write_results
from kvtransfer.lane import LaneSettings
from kvtransfer.protocol import KvReceiver, Transport
from kvtransfer.pusher import Pusher
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.tcp import TcpTransport
from prefill_worker.core import PrefillCore, PrefillSettings
from runtime.clock import MonotonicClock
from scheduling.batch_time import shape_of_plan
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.kv_export import KvTarget
from scheduling.messages import PushTo, SequenceSpec, StartPrefill
from scheduling.push_pacing import KvOverlap
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    Push,
    PushFinished,
    SampledOutput,
    SessionId,
    StepFinished,
    WorkerAction,
    WorkerEvent,
)
from simulator.hardware.description import load_hardware
from worker.kv_push import KvPush

BLOCK_SIZE = 16
LENGTHS = (64, 512, 2048, 8192)
# Passes and paths are known after these; one pass in four is learnt from.
WARM_LENGTHS = (700, 2048, 96, 1300, 4096, 64, 2500, 8192)
PATIENCE_S = 60.0
# No way may be slower than the better of the two others by more, in the median.
MOST_RATIO = 1.05

# Of work, to find how long one takes.
_UNITS_AT_ONCE = 100

_generations = count(1)


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt by one way; seconds since its arrival."""

    computed_s: float
    arrived_s: float
    # Of all threads of the process.
    cpu_s: float
    num_pushes: int
    num_passes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One length of prompt over one transport."""

    compute: str
    transport: str
    num_tokens: int
    max_num_batched_tokens: int
    num_bytes: int
    # By way, a turn a round.
    turns: dict[str, list[Turn]]
    # One push of all of it with nothing else under way, a round each.
    alone_s: list[float]

    def ratios(self, what: str, way: str, beside: str) -> list[float]:
        """Of a field of `Turn`, within a round."""
        pairs = zip(self.turns[way], self.turns[beside], strict=True)
        return [getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs]

    def shares_of_limit(self) -> list[float]:
        """The most that any overlap could reach, over what `auto` took: path or passes alone."""
        whole = [turn.computed_s for turn in self.turns["whole"]]
        autos = [turn.arrived_s for turn in self.turns["auto"]]
        triples = zip(whole, self.alone_s, autos, strict=True)
        return [max(passes, path) / auto for passes, path, auto in triples]


class Passes:
    """What stands for the model."""

    def __init__(self, hardware: str, compute: str) -> None:
        self._model = load_hardware(hardware).batch_time_model()
        self._compute = compute
        self._matrix = torch.ones(256, 256)
        self._unit_s = min(self._timed() for _ in range(20)) / _UNITS_AT_ONCE

    def run(self, plan: StepPlan) -> None:
        """Takes as long as the pass on that hardware, or longer where others disturb it."""
        seconds = self._model.seconds(shape_of_plan(plan))
        if self._compute == "elsewhere":
            time.sleep(seconds)
            return
        for _ in range(round(seconds / self._unit_s)):
            torch.mm(self._matrix, self._matrix)

    def _timed(self) -> float:
        began_at_s = time.perf_counter()
        for _ in range(_UNITS_AT_ONCE):
            torch.mm(self._matrix, self._matrix)
        return time.perf_counter() - began_at_s


@dataclass
class Place:
    """The pool that is pushed from, the one that is pushed into, and the way between them."""

    transport: Transport
    block_bytes: int
    num_blocks: int
    receiver: KvReceiver = field(init=False)
    source: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.receiver = self.transport.create_receiver(
            self.num_blocks, self.block_bytes, "benchmark-decode", next(_generations)
        )
        num_words = self.num_blocks * self.block_bytes // 8
        self.source = np.arange(num_words, dtype=np.uint64).view(np.uint8).data


class Side:
    """A prefill worker without its processes: core, pushes and lane, driven by one thread."""

    def __init__(self, place: Place, overlap: KvOverlap, passes: Passes, per_pass: int) -> None:
        self._place, self._passes = place, passes
        self._core = PrefillCore(
            PrefillSettings(
                place.num_blocks,
                BLOCK_SIZE,
                8,
                per_pass,
                prefix_caching=False,
                kv_overlap=overlap,
                are_cores_shared=passes._compute == "here",
            )
        )
        self._inbox: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self._kv = KvPush(self._inbox.put, PATIENCE_S)
        settings = LaneSettings(f"benchmark-{overlap}#1", place.block_bytes)
        transports = {place.transport.name: place.transport}
        self._pusher = Pusher(
            transports, place.source, self._kv.on_done, settings, MonotonicClock()
        )
        self._kv.attach(self._pusher)
        self._num_pushes = 0

    def run(self, name: str, num_tokens: int) -> Turn:
        """One prompt, whose target is known when it arrives."""
        target = self._target(name, -(-num_tokens // BLOCK_SIZE))
        generations = np.array(target.generations)
        self._num_pushes = num_passes = 0
        cpu_before_s, began_at_s = time.process_time(), time.perf_counter()
        prompt = SequenceSpec(tuple(range(num_tokens)), (), SamplingParams(), StopParams(5))
        self._send(StartPrefill(TaskId(name), prompt))
        self._send(PushTo(TaskId(name), target))
        while self._pass():
            num_passes += 1
        computed_s = time.perf_counter() - began_at_s
        while not self._place.receiver.poll(target.block_ids, generations).is_complete:
            if time.perf_counter() - began_at_s > PATIENCE_S:
                raise RuntimeError(f"{name}: the blocks did not arrive")
            time.sleep(5e-5)
        arrived_s = time.perf_counter() - began_at_s
        cpu_s = time.process_time() - cpu_before_s
        while self._core.num_tasks:
            self._perform(self._core.handle(self._inbox.get(timeout=PATIENCE_S)))
        return Turn(computed_s, arrived_s, cpu_s, self._num_pushes, num_passes)

    def alone(self, num_tokens: int) -> float:
        """One push of so much with nothing else to do: what the path carries."""
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        target = self._target("alone", num_blocks)
        blocks = tuple(BlockId(number) for number in range(num_blocks))
        began_at_s = time.perf_counter()
        self._kv.perform(Push(TaskId("alone"), target, 0, blocks))
        event = self._inbox.get(timeout=PATIENCE_S)
        assert isinstance(event, PushFinished)
        assert event.error is None
        return time.perf_counter() - began_at_s

    def close(self) -> None:
        """Ends its lane."""
        self._pusher.close(PATIENCE_S)

    def _target(self, name: str, num_blocks: int) -> KvTarget:
        receiver = self._place.receiver
        blocks = tuple(BlockId(number) for number in range(num_blocks))
        generations = (Generation(next(_generations)),) * num_blocks
        receiver.expect(blocks, generations)
        return KvTarget(f"{name}@decode", receiver.export(), blocks, generations)

    def _send(self, command: StartPrefill | PushTo) -> None:
        self._perform(self._core.handle(CommandArrived(SessionId(1), command)))

    def _pass(self) -> bool:
        while not self._inbox.empty():
            self._perform(self._core.handle(self._inbox.get()))
        actions, plan = self._core.plan(time.perf_counter())
        self._perform(actions)
        if plan is None:
            return False
        self._passes.run(plan)
        outputs = tuple(SampledOutput(c.slot, 7, "x") for c in plan.chunks if c.samples)
        self._perform(self._core.handle(StepFinished(outputs)))
        return True

    def _perform(self, actions: list[WorkerAction]) -> None:
        for action in actions:
            if isinstance(action, Push):
                self._num_pushes += 1
                self._kv.perform(action)


def main() -> None:
    options = _parser().parse_args()
    lengths: tuple[int, ...] = LENGTHS
    if options.quick:
        options.rounds, lengths = 2, (64, 2048)
    torch.set_num_threads(torch.get_num_threads() if options.threads is None else options.threads)
    rows: list[Row] = []
    try:
        for row in _measure_all(options, lengths):
            rows.append(row)
            print(_line(row), flush=True)
    finally:
        _tell(options, rows)


def _tell(options: argparse.Namespace, rows: list[Row]) -> None:
    """What was measured, be it all of it or not."""
    targets = [
        Target(f"auto beside {other}: {_name(row)}", tuple(ratios), MOST_RATIO, is_limit=True)
        for row in rows
        for other in ("whole", "chunk")
        for ratios in [row.ratios("arrived_s", "auto", other)]
    ]
    print_targets(targets)
    if options.out:
        figures = {
            "hardware": options.hardware,
            "kv_bytes_per_token": options.token_bytes,
            "rows": [asdict(row) for row in rows],
        }
        write_results(options.out, figures, targets, options.quick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kv_overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="two rounds, small: a look")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each")
    parser.add_argument("--hardware", default="h200", help="whose passes are stood for")
    parser.add_argument("--token-bytes", type=int, default=8 << 10, help="KV of a token")
    parser.add_argument(
        "--per-pass", type=int, nargs="+", default=[1024, 8192], help="tokens of a pass at most"
    )
    parser.add_argument(
        "--compute",
        nargs="+",
        default=["elsewhere"],
        help="where passes are computed: elsewhere (asleep), here (by work for --threads)",
    )
    parser.add_argument("--threads", type=int, help="of the passes that are computed here")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    return parser


def _measure_all(options: argparse.Namespace, lengths: tuple[int, ...]) -> Iterator[Row]:
    print("ratios within a round, medians (lowest-highest): until the last block is there")
    num_blocks = -(-max((*lengths, *WARM_LENGTHS)) // BLOCK_SIZE)
    for compute in options.compute:
        passes = Passes(options.hardware, compute)
        for transport in (SharedMemoryTransport(), TcpTransport()):
            place = Place(transport, BLOCK_SIZE * options.token_bytes, num_blocks)
            for per_pass in options.per_pass:
                yield from _measure(place, passes, (compute, per_pass), lengths, options.rounds)
            place.receiver.close()


def _measure(
    place: Place,
    passes: Passes,
    setting: tuple[str, int],
    lengths: tuple[int, ...],
    rounds: int,
) -> Iterator[Row]:
    compute, per_pass = setting
    sides = {way.value: Side(place, way, passes, per_pass) for way in KvOverlap}
    for side in sides.values():
        for number, num_tokens in enumerate(WARM_LENGTHS):
            side.run(f"warm/{number}", num_tokens)
    rng = random.Random(1)
    numbers = count()
    for num_tokens in lengths:
        turns: dict[str, list[Turn]] = {way: [] for way in sides}
        alone_s = []
        for _ in range(rounds):
            for way in rng.sample(sorted(sides), len(sides)):
                turns[way].append(sides[way].run(f"r/{next(numbers)}", num_tokens))
            alone_s.append(sides["whole"].alone(num_tokens))
        num_bytes = -(-num_tokens // BLOCK_SIZE) * place.block_bytes
        row = Row(compute, place.transport.name, num_tokens, per_pass, num_bytes, turns, alone_s)
        yield row
    for side in sides.values():
        side.close()


def _name(row: Row) -> str:
    return (
        f"{row.num_tokens} tokens in passes of {row.max_num_batched_tokens}, "
        f"{row.transport}, computed {row.compute}"
    )


def _line(row: Row) -> str:
    def jobs(way: str) -> str:
        last = row.turns[way][-1]
        return f"{last.num_pushes}/{last.num_passes}"

    def ms(way: str) -> str:
        return f"{1e3 * statistics.median(turn.arrived_s for turn in row.turns[way]):.1f}"

    return (
        f"{_name(row)}: whole {ms('whole')} chunk {ms('chunk')} auto {ms('auto')} ms, "
        f"alone {1e3 * statistics.median(row.alone_s):.1f}; "
        f"auto/whole {spread(row.ratios('arrived_s', 'auto', 'whole'), 2)}, "
        f"auto/chunk {spread(row.ratios('arrived_s', 'auto', 'chunk'), 2)}, "
        f"first token auto/whole {spread(row.ratios('computed_s', 'auto', 'whole'), 2)}, "
        f"CPU auto/chunk {spread(row.ratios('cpu_s', 'auto', 'chunk'), 2)}, "
        f"pushes/passes {jobs('whole')} {jobs('chunk')} {jobs('auto')}, "
        f"of the limit {spread(row.shares_of_limit(), 2)}"
    )


if __name__ == "__main__":
    main()
