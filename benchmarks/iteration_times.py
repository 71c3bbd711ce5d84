"""Times of single passes of the engine, as the table that the batch-time model is fitted to.

Run: python -m benchmarks.iteration_times --shape 0.1b --out simulator/hardware/cpu_measurements.csv
then: python -m simulator.hardware.fit PROFILES --only cpu

Decode batches, whole prompts, later chunks of prompts, and both in one pass; the median of
`--repeats` passes each, in an order that is shuffled, since others may use the machine. On one
thread it is the time of the engine's thread alone, without what others took from it.
"""

import argparse
import csv
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.decode_step import BLOCK_SIZE, SHAPES
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.testing import family_fields, make_random_model_folder
from scheduling.batch_time import BatchShape, shape_of
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

COLUMNS = ("num_decode", "decode_context", "num_prompt_tokens", "prompt_attention", "ms")


@dataclass(frozen=True, slots=True)
class Pass:
    """Decoding sequences of equal context, and one chunk of a prompt."""

    num_decode: int
    context: int
    chunk_start: int
    chunk_tokens: int

    def plan(self) -> StepPlan:
        decodes = [
            ScheduledChunk(slot, self.context - 1, 1, True) for slot in range(self.num_decode)
        ]
        if self.chunk_tokens:
            decodes.append(
                ScheduledChunk(self.num_decode, self.chunk_start, self.chunk_tokens, True)
            )
        return StepPlan(tuple(decodes))

    def lengths(self) -> list[int]:
        """Tokens of the history of each slot."""
        chunk = [self.chunk_start + self.chunk_tokens] if self.chunk_tokens else []
        return [self.context] * self.num_decode + chunk

    def shape(self) -> BatchShape:
        return shape_of(self.plan().chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; default: a random one")
    parser.add_argument("--shape", choices=SHAPES, default="0.1b", help="of the random model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=512, help="of a chunk")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model or random_folder(args.shape), args.dtype, "cpu", "auto")
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    rows = []
    for item in shuffled(passes(args.max_tokens)):
        seconds = seconds_of(_runner(model, item.lengths()), item, args.repeats, clock)
        rows.append((item.shape(), 1e3 * statistics.median(seconds)))
    write_table(args.out, rows)


def write_table(path: Path, rows: Sequence[tuple[BatchShape, float]]) -> None:
    """Passes and their milliseconds, in the order of their shapes."""
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        fields = sorted((*_fields(shape), f"{ms:.3f}") for shape, ms in rows)
        writer.writerows(fields)


def passes(max_tokens: int) -> Iterator[Pass]:
    """The grid: every kind of pass that an iteration of a worker can be."""
    chunks = [tokens for tokens in (16, 32, 64, 128, 256, 512, 1024) if tokens <= max_tokens]
    for num_decode in (1, 2, 4, 8, 16, 32, 64):
        for context in (64, 300, 1000):
            yield Pass(num_decode, context, 0, 0)
    for tokens in chunks:
        for start in (0, 512):
            yield Pass(0, 0, start, tokens)
    for num_decode in (4, 16, 32):
        for tokens in chunks:
            yield Pass(num_decode, 300, 0, tokens)


def shuffled(items: Iterator[Pass]) -> list[Pass]:
    """The same order each time."""
    listed = list(items)
    random.Random(1).shuffle(listed)
    return listed


def _fields(shape: BatchShape) -> tuple[int, int, int, int]:
    return (
        shape.num_decode,
        shape.decode_context,
        shape.num_prompt_tokens,
        shape.prompt_attention,
    )


def random_folder(shape: str) -> Path:
    """A model of that shape, its weights drawn, in a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="iteration-times-"))
    sizes = SHAPES[shape] | {"head_dim": 64, "max_position_embeddings": 2048}
    fields = family_fields("llama", **sizes, tie_word_embeddings=True)
    make_random_model_folder(folder, fields=fields)
    return folder


def seconds_of(
    runner: ModelRunner, item: Pass, repeats: int, clock: Callable[[], float]
) -> list[float]:
    """Each of `repeats` passes, after one that warms caches; the runner is empty then as before."""
    lengths, plan = item.lengths(), item.plan()
    seconds = []
    for _ in range(repeats + 1):
        # KV of tokens before a chunk is zero, which attention reads as fast as any other.
        _add(runner, lengths)
        started = clock()
        runner.step(plan)
        seconds.append(clock() - started)
        for slot in range(len(lengths)):
            runner.remove(slot)
    return seconds[1:]


def _runner(model: Decoder, lengths: Sequence[int]) -> ModelRunner:
    config = model.config
    dtype = str(model.dtype).removeprefix("torch.")
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
    num_blocks = blocks_for(lengths)
    return ModelRunner(model, KvPool(layout, num_blocks, model.device), len(lengths))


def _add(runner: ModelRunner, lengths: Sequence[int]) -> None:
    first = 0
    for slot, length in enumerate(lengths):
        blocks = tuple(range(first, first + blocks_for([length])))
        first += len(blocks)
        tokens = tuple(3 + (7 * slot + i) % 300 for i in range(length))
        runner.add(SequenceStart(slot, tokens, length, SamplingParams(temperature=0.0), blocks))


def blocks_for(lengths: Sequence[int]) -> int:
    """For so many tokens of each sequence, and the token that the pass samples."""
    return sum(num_tokens // BLOCK_SIZE + 1 for num_tokens in lengths)


if __name__ == "__main__":
    main()
