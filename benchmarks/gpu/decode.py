"""Decode steps beside the time to read weights and KV once, with recorded layers and without.

Where a worker has row kernels (engine/models/row_kernels.py), recorded layers also without them.
"""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.decode_step import BLOCK_SIZE
from benchmarks.gpu.engine_setup import EngineSetup
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.rates import Rates, measure_rates
from benchmarks.gpu.through_loop import MORE_TOKENS, ORDERINGS, loop_step_s
from benchmarks.record import Target
from engine.model_runner import ModelRunner
from scheduling.block_pool import num_blocks_for
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

# Of the floor, from this batch size on, with recorded layers.
LIMIT, LEAST_BATCH = 1.2, 16
_BATCHES = (16, 64, 256, 1, 32, 128, 4, 8, 2)
_CONTEXTS = (1024, 4096, 16_384, 2048, 8192)
_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured, the most telling first: time may run out."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    num_steps: int

    def cells(self) -> Iterator[tuple[int, int]]:
        for context in self.contexts:
            for batch in self.batches:
                yield batch, context


def grid_for(is_quick: bool) -> Grid:
    """The whole one, or a look."""
    return Grid((1, 16), (64,), 3) if is_quick else Grid(_BATCHES, _CONTEXTS, 24)


def measure_decode(setup: EngineSetup, journal: Journal) -> None:
    """A row for each cell and each way of ordering kernels."""
    grid, rates = grid_for(setup.options.is_quick), measure_rates(setup)
    journal.note(rates=asdict(rates), limit=f"{LIMIT} x the floor from batch {LEAST_BATCH} up")
    largest = max(grid.batches)
    # Before the pool takes what is left.
    captured = setup.captured_model(largest)
    runners = {"single kernels": setup.runner(largest)}
    if captured is None:
        journal.skip("recorded layers", "CUDA graphs need a CUDA device")
    else:
        runners = {"recorded": setup.runner(largest, captured), **runners}
        if setup.has_row_kernels:
            by_torch = setup.captured_model(largest, "torch")
            runners["recorded, torch's rows"] = setup.runner(largest, by_torch)
    journal.note(**setup.facts())
    for batch, context in grid.cells():
        name = f"batch {batch}, context {context}"
        room = context + _WARM_UPS + grid.num_steps
        blocks = room // BLOCK_SIZE + 1
        if batch * blocks > setup.pool.num_blocks:
            journal.skip(name, f"{batch * blocks * BLOCK_SIZE} tokens do not fit in memory")
            continue
        for ordering, runner in runners.items():
            if not journal.has_time(f"{name}, {ordering}"):
                continue
            seconds = _step_seconds(setup, runner, batch, context, grid.num_steps)
            _tell(setup, journal, rates, (batch, context, ordering), seconds)
            if ordering == next(iter(runners)) and context == grid.contexts[0]:
                _tell_host_gap(setup, journal, runner, (batch, context), seconds)


def _tell_host_gap(
    setup: EngineSetup,
    journal: Journal,
    runner: ModelRunner,
    cell: tuple[int, int],
    seconds: list[float],
) -> None:
    """The same steps through the engine loop: what the host adds to each."""
    (batch, context), bare = cell, statistics.median(seconds)
    num_steps = len(seconds)
    most = batch * num_blocks_for(context + num_steps + MORE_TOKENS, BLOCK_SIZE)
    if most > setup.pool.num_blocks:
        journal.skip(f"batch {batch}, context {context}, engine loop", "does not fit in memory")
        return
    for name, plans_ahead in ORDERINGS.items():
        if not journal.has_time(f"batch {batch}, context {context}, engine loop, {name}"):
            return
        step = loop_step_s(runner, batch, context, num_steps, plans_ahead=plans_ahead)
        journal.row(
            {
                "batch": batch,
                "context": context,
                "ordering": f"engine loop, {name}",
                "step_ms": 1e3 * step,
                "bare_step_ms": 1e3 * bare,
                "host_gap_ms": 1e3 * (step - bare),
                "tokens_per_s": batch / step,
            }
        )
        print(
            f"decode batch {batch} context {context} engine loop, {name}: {1e3 * step:.2f} ms, "
            f"{1e3 * (step - bare):+.2f} ms beside bare steps",
            flush=True,
        )


def _step_seconds(
    setup: EngineSetup, runner: ModelRunner, batch: int, context: int, num_steps: int
) -> list[float]:
    """Steps that follow on one another, over KV that is zero: it is read as fast as any other."""
    num_steps += _WARM_UPS
    blocks = (context + num_steps) // BLOCK_SIZE + 1
    sampling = SamplingParams(temperature=0.0)
    for slot in range(batch):
        tokens = tuple(3 + (7 * slot + i) % 300 for i in range(context))
        table = tuple(range(slot * blocks, (slot + 1) * blocks))
        runner.add(SequenceStart(slot, tokens, context, sampling, table))
    seconds = []
    for step in range(num_steps):
        at = context - 1 + step
        plan = StepPlan(tuple(ScheduledChunk(slot, at, 1, True) for slot in range(batch)))
        started = setup.clock()
        runner.step(plan)
        seconds.append(setup.clock() - started)
    for slot in range(batch):
        runner.remove(slot)
    return seconds[_WARM_UPS:]


def _tell(
    setup: EngineSetup,
    journal: Journal,
    rates: Rates,
    cell: tuple[int, int, str],
    seconds: list[float],
) -> None:
    batch, context, ordering = cell
    kv_bytes = batch * context * setup.layout.block_bytes / BLOCK_SIZE
    floor = (setup.weight_bytes() + kv_bytes) / rates.memory_bytes_per_s
    products = 2 * batch * setup.weight_bytes() / setup.model.dtype.itemsize / rates.flops
    step = statistics.median(seconds)
    row = {
        "batch": batch,
        "context": context,
        "ordering": ordering,
        "step_ms": 1e3 * step,
        "fastest_ms": 1e3 * min(seconds),
        "memory_floor_ms": 1e3 * floor,
        "products_floor_ms": 1e3 * products,
        "of_memory_floor": step / floor,
        "of_higher_floor": step / max(floor, products),
        "tokens_per_s": batch / step,
    }
    print(
        f"decode batch {batch} context {context} {ordering}: {1e3 * step:.2f} ms, floor "
        f"{1e3 * floor:.2f} ms ({step / floor:.2f} x)",
        flush=True,
    )
    # A few steps of a tiny model say nothing of a limit.
    is_judged = batch >= LEAST_BATCH and ordering == "recorded" and not setup.options.is_quick
    what = f"decode step in memory floors, batch {batch}, context {context}"
    targets = [Target(what, (step / floor,), LIMIT, is_limit=True)] if is_judged else []
    journal.row(row, *targets)
