"""Decode steps of answers whose prompts begin alike: that beginning read once, or once for each."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.decode_step import BLOCK_SIZE
from benchmarks.gpu.engine_setup import EngineSetup
from benchmarks.gpu.journal import Journal
from engine.attention.choice import AttentionUnavailable, PrefixSharing
from engine.model_runner import ModelRunner
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

_WARM_UPS = 3
_SHARINGS: Mapping[str, PrefixSharing] = {"together": "yes", "apart": "no"}


@dataclass(frozen=True, slots=True)
class Load:
    """Answers that have a beginning in common, and tokens of their own."""

    batch: int
    shared_tokens: int
    own_tokens: int

    def tables(self, num_steps: int) -> list[tuple[int, ...]]:
        """Block tables with room for the steps; the first blocks are those of all."""
        num_shared = self.shared_tokens // BLOCK_SIZE
        num_own = (self.own_tokens + num_steps) // BLOCK_SIZE + 1
        return [
            (*range(num_shared), *range(first, first + num_own))
            for first in range(num_shared, num_shared + self.batch * num_own, num_own)
        ]


def loads_for(setup: EngineSetup) -> tuple[Load, ...]:
    """The most telling first: time may run out."""
    if setup.options.is_quick:
        return (Load(4, 512, 16),)
    if not setup.options.is_cuda:
        return tuple(Load(n, tokens, 48) for n in (32, 8, 2) for tokens in (2048, 512))
    return tuple(Load(n, tokens, 256) for n in (64, 16, 256, 4) for tokens in (8192, 1024))


def measure_shared_prefix(setup: EngineSetup, journal: Journal) -> None:
    """A row for each load; steps of both kinds take turns over one pool."""
    loads, num_steps = loads_for(setup), 3 if setup.options.is_quick else 13
    largest = max(load.batch for load in loads)
    # Before the pool takes what is left.
    model = setup.captured_model(largest) or setup.model
    try:
        attentions = {name: setup.attention_with(how) for name, how in _SHARINGS.items()}
    except AttentionUnavailable as error:
        journal.skip("all loads", str(error))
        return
    journal.note(
        **setup.facts(),
        sharing=attentions["together"].arithmetic,
        time="wall" if setup.options.is_cuda else "of the processor",
    )
    runners = {
        name: ModelRunner(model, setup.pool, largest, attention)
        for name, attention in attentions.items()
    }
    for load in loads:
        name = f"{load.batch} answers, {load.shared_tokens} tokens in common"
        num_blocks = max(map(max, load.tables(_WARM_UPS + num_steps))) + 1
        if num_blocks > setup.pool.num_blocks:
            journal.skip(name, f"{num_blocks * BLOCK_SIZE} tokens do not fit in memory")
        elif journal.has_time(name):
            _tell(journal, load, _step_seconds(setup, runners, load, num_steps))


def _step_seconds(
    setup: EngineSetup, runners: Mapping[str, ModelRunner], load: Load, num_steps: int
) -> dict[str, list[float]]:
    """Of each kind, over KV that is zero: it is read as fast as any other."""
    # Where other processes have the cores too, the time of this one is what can be compared.
    clock = setup.clock if setup.options.is_cuda else time.process_time
    context = load.shared_tokens + load.own_tokens
    for slot, table in enumerate(load.tables(_WARM_UPS + num_steps)):
        tokens = tuple(3 + (7 * slot + i) % 300 for i in range(context))
        start = SequenceStart(slot, tokens, context, SamplingParams(temperature=0.0), table)
        for runner in runners.values():
            runner.add(start)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for step in range(_WARM_UPS + num_steps):
        at = context - 1 + step
        plan = StepPlan(tuple(ScheduledChunk(slot, at, 1, True) for slot in range(load.batch)))
        for name, runner in runners.items():
            started = clock()
            runner.step(plan)
            seconds[name].append(clock() - started)
    for runner in runners.values():
        for slot in range(load.batch):
            runner.remove(slot)
    return {name: taken[_WARM_UPS:] for name, taken in seconds.items()}


def _tell(journal: Journal, load: Load, seconds: Mapping[str, list[float]]) -> None:
    ratios = [
        apart / together
        for apart, together in zip(seconds["apart"], seconds["together"], strict=True)
    ]
    low, middle, high = statistics.quantiles(ratios, n=4)
    steps = {f"{name}_ms": 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    journal.row(
        {
            "batch": load.batch,
            "shared_tokens": load.shared_tokens,
            "own_tokens": load.own_tokens,
            **steps,
            "apart_to_together": {"median": middle, "quartiles": [low, high]},
        }
    )
    print(
        f"prefix of {load.shared_tokens} tokens, {load.batch} answers: {steps['apart_ms']:.2f} ms "
        f"apart, {steps['together_ms']:.2f} ms together ({middle:.2f} x)",
        flush=True,
    )
