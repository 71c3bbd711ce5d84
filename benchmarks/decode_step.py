"""Tokens per second of the engine alone: decode steps of several batch sizes, and prompt chunks.

Run: python benchmarks/decode_step.py [--model DIR] [--dtype float32] [--threads 1] [--profile]
Without a folder it makes a random model of two million parameters.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.testing import make_random_model_folder, random_model_config
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

BLOCK_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[32, 300])
    parser.add_argument("--profile", action="store_true", help="operators of the last decode batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model or _random_folder(), args.dtype)
    print(f"{args.dtype}, {args.threads} thread(s), row counts {model.row_tiles.sizes}")
    for context in args.context:
        for batch in args.batch:
            runner = _runner(model, batch, context + 2 * args.steps + 20)
            _decode(runner, model, batch, context, args)
    for chunk in (64, 256, 512):
        _prefill(model, chunk)


def _random_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="decode-step-"))
    config = random_model_config(
        "llama",
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    make_random_model_folder(folder, config=config)
    return folder


def _runner(model: Decoder, batch: int, tokens: int) -> ModelRunner:
    config = model.config
    dtype = str(model.dtype).removeprefix("torch.")
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
    pool = KvPool(layout, batch * (tokens // BLOCK_SIZE + 1))
    return ModelRunner(model, pool, batch)


def _start(runner: ModelRunner, slot: int, tokens: int, room: int, temperature: float) -> None:
    blocks = room // BLOCK_SIZE + 1
    prompt = tuple(3 + (7 * slot + i) % 300 for i in range(tokens))
    table = tuple(range(slot * blocks, (slot + 1) * blocks))
    sampling = SamplingParams(temperature=temperature, top_p=0.9, seed=slot)
    runner.add(SequenceStart(slot, prompt, tokens, sampling, table))


def _decode(
    runner: ModelRunner, model: Decoder, batch: int, context: int, args: argparse.Namespace
) -> None:
    for slot in range(batch):
        _start(runner, slot, context, context + 2 * args.steps + 19, args.temperature)
        runner.step(StepPlan((ScheduledChunk(slot, 0, context, True),)))
    times = []
    for step in range(args.steps + 5):
        chunks = tuple(ScheduledChunk(slot, context + step, 1, True) for slot in range(batch))
        started = time.perf_counter()
        runner.step(StepPlan(chunks))
        times.append(time.perf_counter() - started)
    middle = statistics.median(times[5:])
    print(
        f"decode  batch {batch:3d}  context {context:4d}+  {1e3 * middle:7.3f} ms/step  "
        f"{batch / middle:8.0f} tokens/s  (fastest step {1e3 * min(times):.3f} ms)"
    )
    if args.profile and batch == args.batch[-1]:
        with torch.profiler.profile() as profile:
            for step in range(args.steps + 5, args.steps + 25):
                chunks = tuple(
                    ScheduledChunk(slot, context + step, 1, True) for slot in range(batch)
                )
                runner.step(StepPlan(chunks))
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22))


def _prefill(model: Decoder, chunk: int) -> None:
    times = []
    for _ in range(8):
        runner = _runner(model, 1, chunk)
        _start(runner, 0, chunk, chunk, 0.0)
        started = time.perf_counter()
        runner.step(StepPlan((ScheduledChunk(0, 0, chunk, True),)))
        times.append(time.perf_counter() - started)
    middle = statistics.median(times)
    print(f"prefill chunk {chunk:4d}  {1e3 * middle:7.3f} ms  {chunk / middle:8.0f} tokens/s")


if __name__ == "__main__":
    main()
