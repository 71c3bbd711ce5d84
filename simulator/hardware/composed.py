"""Iterations put together from single operators, and what real engines add to them.

For GPUs of which nobody published whole iterations: time per layer of the products and of attention
(the only table with prompt and decode in one kernel), times layers, plus head and sampler. What
launches, host and communication add is taken from seconds of a recorded run without any prompt.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from scheduling.batch_time import BatchShape, BatchTimeModel, chunk_attention
from scheduling.batch_time_fit import MeasuredBatch, NormalEquations, solve_non_negative
from simulator.hardware.profiles import Phases, Row, decodes, select

# Twice in a layer; every other per-layer operator runs once.
_TWICE = {"layernorm"}
_ONCE_PER_PASS = {"embedding", "final_layernorm"}
_PER_SEQUENCE = {"lm_head", "sampler"}
# Tokens; decode batches are below.
SMALL_PASS = 128
# Of reweighted least squares; it has settled after ten.
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class OperatorTable:
    """Milliseconds over a size, on a grid."""

    sizes: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, size: int) -> float:
        """Linear between two grid points; the table ends where iterations do."""
        place = min(bisect_left(self.sizes, size), len(self.sizes) - 1)
        if place == 0 or self.sizes[place] <= size:
            return self.ms[place]
        left, right = self.sizes[place - 1], self.sizes[place]
        share = (size - left) / (right - left)
        return self.ms[place - 1] + share * (self.ms[place] - self.ms[place - 1])


@dataclass(frozen=True, slots=True)
class Composer:
    """All operators of one model on one GPU type, for one GPU of the TP group."""

    num_layers: int
    per_layer: tuple[tuple[int, OperatorTable], ...]
    per_pass: tuple[OperatorTable, ...]
    per_sequence: tuple[OperatorTable, ...]

    @property
    def max_tokens(self) -> int:
        return min(table.sizes[-1] for _, table in self.per_layer)

    def ms_without_attention(self, num_tokens: int, num_sampled: int) -> float:
        layer = sum(times * table.at(num_tokens) for times, table in self.per_layer)
        once = sum(table.at(num_tokens) for table in self.per_pass)
        return self.num_layers * layer + once + sum(t.at(num_sampled) for t in self.per_sequence)


def composer(folder: Path, num_layers: int, **wanted: str) -> Composer:
    """Raises: ProfileMissing."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in select(folder, "operator_rtx_dense", **wanted):
        points[row["layer"]].append((int(row["tokens_or_sequences"]), float(row["ms"])))
    tables = {}
    for layer, pairs in sorted(points.items()):
        sizes, ms = zip(*sorted(pairs), strict=True)
        tables[layer] = OperatorTable(sizes, ms)
    special = _ONCE_PER_PASS | _PER_SEQUENCE
    return Composer(
        num_layers,
        tuple((1 + (name in _TWICE), t) for name, t in tables.items() if name not in special),
        tuple(table for name, table in tables.items() if name in _ONCE_PER_PASS),
        tuple(table for name, table in tables.items() if name in _PER_SEQUENCE),
    )


def composed_iterations(folder: Path, num_layers: int, max_context: int, **wanted: str) -> Phases:
    """Every row of the mixed-attention table as a whole iteration, contexts up to `max_context`."""
    operators = composer(folder, num_layers, **wanted)
    phases: Phases = {"prefill": [], "decode": [], "mixed": []}
    for row in select(folder, "operator_rtx_mixed_attention", **wanted):
        batch, context = int(row["decode_batch"]), int(row["decode_context"])
        chunk, start = int(row["prefill_chunk"]), int(row["prefill_context"])
        num_tokens = chunk + batch
        if num_tokens > operators.max_tokens or max(start, context) > max_context:
            continue
        num_sampled = batch + (chunk > 0)
        ms = operators.ms_without_attention(num_tokens, num_sampled)
        ms += num_layers * float(row["ms"])
        shape = BatchShape(batch, batch * context, chunk, chunk_attention(start, chunk))
        kind = "decode" if chunk == 0 else "mixed" if batch else "prefill"
        phases[kind].append(MeasuredBatch(shape, ms / 1e3))
    return phases


@dataclass(frozen=True, slots=True)
class _Life:
    """When a request of a recorded run decoded, and how much."""

    prompt_tokens: int
    output_tokens: int
    first_token_s: float
    last_token_s: float

    def context_at(self, at_s: float) -> float:
        """Tokens it held then, as if it had decoded evenly; 0 outside its life."""
        if not self.first_token_s <= at_s <= self.last_token_s:
            return 0.0
        lasted = max(1e-9, self.last_token_s - self.first_token_s)
        done = (at_s - self.first_token_s) / lasted
        return self.prompt_tokens + done * self.output_tokens


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded run of a real engine: its requests, and what it did in each second."""

    lives: tuple[_Life, ...]
    timeline: tuple[Row, ...]
    max_num_batched_tokens: int
    max_num_seqs: int
    # Of prompt tokens, by the prefix cache.
    reused_share: float
    # Where the run tells how full the KV cache is; else contexts come from the requests.
    kv_capacity_tokens: int | None = None

    def passes(self) -> list[MeasuredBatch]:
        """One pass for each second of decoding alone, and one for all seconds of full iterations.

        Decoding: the number of running sequences over their tokens is the time of a pass.
        Full: with prompts waiting all the time and slots free, every iteration held all it may.
        A long iteration counts in one second or the next, so only their sum says something.
        """
        pairs = list(pairwise(self.timeline))
        found = [row for before, after in pairs if (row := self._decode_pass(before, after))]
        full = [pair for pair in pairs if self._was_full(*pair)]
        if full:
            found.append(self._full_pass(full))
        return found

    def _decode_pass(self, before: Row, row: Row) -> MeasuredBatch | None:
        running, context = self._running(before, row), self._context(before, row)
        tokens = float(row["output_tokens_per_s"])
        change = abs(int(before["running"]) - int(row["running"]))
        has_prompts = float(row["prompt_tokens_per_s"]) > 0
        if has_prompts or running < 2 or change > 0.15 * running or tokens < running:
            return None
        num_decode = round(running)
        return MeasuredBatch(
            decodes(num_decode, max(1, round(context / num_decode))), running / tokens
        )

    def _full_pass(self, pairs: Sequence[tuple[Row, Row]]) -> MeasuredBatch:
        count = len(pairs)
        # What was found in the prefix cache is counted as prompt tokens and was not computed.
        per_second = sum(
            (1 - self.reused_share) * float(row["prompt_tokens_per_s"])
            + float(row["output_tokens_per_s"])
            for _, row in pairs
        )
        num_decode = round(sum(self._running(*pair) for pair in pairs) / count)
        context = round(sum(self._context(*pair) for pair in pairs) / count)
        seconds = count * self.max_num_batched_tokens / per_second
        return MeasuredBatch(self._full(num_decode, context), seconds, weight=float(count))

    @staticmethod
    def _running(before: Row, row: Row) -> float:
        return (int(before["running"]) + int(row["running"])) / 2

    def _was_full(self, before: Row, row: Row) -> bool:
        return (
            min(int(before["waiting"]), int(row["waiting"])) > 0
            and max(int(before["running"]), int(row["running"])) < 0.95 * self.max_num_seqs
            and max(float(before["kv_cache_pct"]), float(row["kv_cache_pct"])) < 90
            and float(row["prompt_tokens_per_s"]) >= self.max_num_batched_tokens
        )

    def _full(self, num_decode: int, context: int) -> BatchShape:
        num_prompt_tokens = self.max_num_batched_tokens - num_decode
        lengths = [life.prompt_tokens for life in self.lives]
        # Tokens before a prompt token, in prompts that are computed in one go.
        mean_before = sum(length**2 for length in lengths) / 2 / sum(lengths)
        pairs = round(num_prompt_tokens * mean_before)
        return BatchShape(num_decode, context, num_prompt_tokens, pairs)

    def _context(self, before: Row, row: Row) -> float:
        if self.kv_capacity_tokens is not None:
            shares = float(before["kv_cache_pct"]) + float(row["kv_cache_pct"])
            return self.kv_capacity_tokens * shares / 200
        middle_s = (float(before["t_s"]) + float(row["t_s"])) / 2
        return sum(life.context_at(middle_s) for life in self.lives)


def replay(
    folder: Path,
    run: str,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    reused_share: float = 0.0,
    kv_capacity_tokens: int | None = None,
) -> Replay:
    """Raises: ProfileMissing."""
    return Replay(
        tuple(_life(row) for row in select(folder, "engine_replays", run=run)),
        tuple(select(folder, "engine_replay_timeline", run=run)),
        max_num_batched_tokens,
        max_num_seqs,
        reused_share,
        kv_capacity_tokens,
    )


def _life(row: Row) -> _Life:
    return _Life(
        int(row["prompt_tokens"]),
        int(row["output_tokens"]),
        float(row["first_token_s"]),
        float(row["last_token_s"]),
    )


@dataclass(frozen=True, slots=True)
class Overhead:
    """What whole passes take beyond their operators: launches, the host, communication."""

    per_pass_s: float
    # Of a TP group, for tokens up to SMALL_PASS and for those beyond: longer messages move faster.
    per_token_s: float = 0.0
    per_further_token_s: float = 0.0

    def seconds(self, num_tokens: int) -> float:
        further = max(0, num_tokens - SMALL_PASS)
        return (
            self.per_pass_s
            + self.per_token_s * (num_tokens - further)
            + self.per_further_token_s * further
        )

    def added_to(self, phases: Phases) -> Phases:
        return {
            kind: [
                replace(row, seconds=row.seconds + self.seconds(row.shape.num_tokens))
                for row in rows
            ]
            for kind, rows in phases.items()
        }


def find_overhead(
    operators: BatchTimeModel, rows: Sequence[MeasuredBatch], *, has_communication: bool
) -> Overhead:
    """The overhead with the least sum of absolute relative errors: some seconds of a run hide
    work that its timeline does not tell, and must not count more for being far off.
    """
    found = Overhead(0.0)
    for _ in range(_ROUNDS):
        equations = NormalEquations(3)
        for row in rows:
            num_tokens = row.shape.num_tokens
            missing = (row.seconds - operators.seconds(row.shape)) / row.seconds
            off = abs(found.seconds(num_tokens) / row.seconds - missing)
            further = max(0, num_tokens - SMALL_PASS)
            columns = [1.0, float(num_tokens - further), float(further)]
            used = columns if has_communication else [1.0, 0.0, 0.0]
            weight = row.weight / max(off, 0.01)
            equations.add([x / row.seconds for x in used], missing, weight)
        found = Overhead(*solve_non_negative(equations.gram, equations.target))
    return found
