"""Tokens per second of the engine alone: decode steps of several batch sizes, and prompt chunks.

Run: python benchmarks/decode_step.py [--shape 0.1b] [--attention torch] [--profile]
Without a folder it makes a random model: of two million parameters in float32, or with
`--shape 0.1b` of 100 million in bfloat16 (768 wide, 12 layers, 12/4 heads of 64, FFN 2048,
vocabulary 32000, tied). Beside each step stands its floor: the time to read its weights and KV once
at the speed of a plain read loop, or, if that is longer, to do its multiplications at the speed of
one large product of the engine's own. With `--attention torch` nothing is compiled; with
`--device cuda --attention flashinfer --dtype bfloat16` a GPU is measured. `wall` and
`cpu` (of the engine's thread) are the fastest of all steps, since others may use the machine.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from engine.attention.choice import (
    AttentionName,
    AttentionShape,
    AttentionUnavailable,
    choose_attention,
)
from engine.kv_dtype import KV_DTYPES, dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.linear import Linear
from engine.loading import DeviceUnavailable, load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.native.choice import KernelChoice
from engine.testing import family_fields, make_random_model_folder
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

BLOCK_SIZE = 16
SHAPES = {
    "2m": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "0.1b": {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the threads that are asked for can do at best."""

    read_bytes_per_s: float
    # Of a packed product of 256 rows in the model's dtype.
    flops: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2m")
    parser.add_argument("--dtype", help="default: bfloat16 for 0.1b, else float32")
    parser.add_argument("--kv-dtype", choices=("auto", *KV_DTYPES), default="auto")
    parser.add_argument("--attention", default="auto", choices=get_args(AttentionName))
    parser.add_argument("--device", default="cpu", help="cuda for --attention flashinfer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[300])
    parser.add_argument("--prefill", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--profile", action="store_true", help="operators of the last decode batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = args.dtype or ("bfloat16" if args.shape == "0.1b" else "float32")
    kernels: KernelChoice = "auto" if args.attention == "flashinfer" else args.attention
    folder = args.model or _random_folder(args.shape)
    try:
        model = load_model(folder, dtype, args.device, kernels)
        runner = _runner(model, args, 1, 1)
    except (DeviceUnavailable, AttentionUnavailable) as error:
        parser.error(str(error))
    machine = _measure_machine(model)
    print(
        f"{dtype}, KV {runner.kv_pool.layout.dtype}, {args.threads} thread(s), "
        f"{runner.arithmetic}\n"
        f"read loop {machine.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"large product {machine.flops / 1e9:.0f} GFLOP/s, "
        f"weights of a step {_weight_bytes(model) / 1e6:.0f} MB"
    )
    for context in args.context:
        for batch in args.batch:
            _decode(model, machine, batch, context, args)
    for chunk in args.prefill:
        _prefill(model, machine, chunk, args)


def _random_folder(shape: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="decode-step-"))
    sizes = SHAPES[shape] | {"head_dim": 64, "max_position_embeddings": 2048}
    fields = family_fields("llama", **sizes, tie_word_embeddings=True)
    make_random_model_folder(folder, fields=fields)
    return folder


def _linears(model: Decoder) -> list[Linear]:
    return [*model.weights.layer_linears, model.weights.lm_head]


def _weight_bytes(model: Decoder) -> int:
    return sum(
        linear.num_inputs * linear.num_outputs * model.dtype.itemsize for linear in _linears(model)
    )


def _measure_machine(model: Decoder) -> Machine:
    numbers = torch.ones(64 << 20, device=model.device)
    reading = _fastest(numbers.sum, 30, model.device)
    widest = max(model.weights.layer_linears, key=lambda linear: linear.num_outputs)
    rows = torch.ones(256, widest.num_inputs, dtype=model.dtype, device=model.device)
    bounds = model.row_tiles.cut(256)
    multiplying = _fastest(lambda: widest(rows, bounds), 40, model.device)
    return Machine(
        numbers.nbytes / reading, 2 * 256 * widest.num_inputs * widest.num_outputs / multiplying
    )


def _fastest(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    is_cuda = device.type == "cuda"
    # One thread is timed by its own clock, which stands still while others have the core.
    is_alone = torch.get_num_threads() == 1 and not is_cuda
    clock = time.thread_time if is_alone else time.perf_counter
    best = float("inf")
    for _ in range(repeats):
        started = clock()
        call()
        if is_cuda:  # the call only began it
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    return best


def _runner(model: Decoder, args: argparse.Namespace, batch: int, tokens: int) -> ModelRunner:
    config = model.config
    dtype = dtype_name(model.dtype) if args.kv_dtype == "auto" else args.kv_dtype
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
    pool = KvPool(layout, batch * (tokens // BLOCK_SIZE + 1), model.device)
    shape = AttentionShape(
        layout, config.num_heads, config.layer_attention, model.device, model.dtype
    )
    return ModelRunner(model, pool, batch, choose_attention(shape, args.attention))


def _start(runner: ModelRunner, slot: int, tokens: int, room: int, temperature: float) -> None:
    blocks = room // BLOCK_SIZE + 1
    prompt = tuple(3 + (7 * slot + i) % 300 for i in range(tokens))
    table = tuple(range(slot * blocks, (slot + 1) * blocks))
    sampling = SamplingParams(temperature=temperature, top_p=0.9, seed=slot)
    runner.add(SequenceStart(slot, prompt, tokens, sampling, table))


def _decode(
    model: Decoder, machine: Machine, batch: int, context: int, args: argparse.Namespace
) -> None:
    room = context + 2 * args.steps + 20
    runner = _runner(model, args, batch, room)
    for slot in range(batch):
        _start(runner, slot, context, room - 1, args.temperature)
        runner.step(StepPlan((ScheduledChunk(slot, 0, context, True),)))
    wall, cpu = float("inf"), float("inf")
    for step in range(args.steps):
        plan = _decode_plan(batch, context + step)
        started, started_cpu = time.perf_counter(), time.thread_time()
        runner.step(plan)
        wall = min(wall, time.perf_counter() - started)
        cpu = min(cpu, time.thread_time() - started_cpu)
    kv_bytes = batch * context * runner.kv_pool.layout.block_bytes / BLOCK_SIZE
    weights = _weight_bytes(model)
    reading = (weights + kv_bytes) / machine.read_bytes_per_s
    floor = max(reading, 2 * batch * weights / model.dtype.itemsize / machine.flops)
    print(
        f"decode  batch {batch:3d}  context {context:4d}+  wall {1e3 * wall:7.2f}  "
        f"cpu {1e3 * cpu:7.2f}  floor {1e3 * floor:6.2f} ms  ({wall / floor:.1f} x, "
        f"cpu {cpu / floor:.1f} x)  {batch / wall:7.0f} tokens/s"
    )
    if args.profile and batch == args.batch[-1]:
        _profile(runner, batch, context + args.steps)


def _decode_plan(batch: int, position: int) -> StepPlan:
    return StepPlan(tuple(ScheduledChunk(slot, position, 1, True) for slot in range(batch)))


def _profile(runner: ModelRunner, batch: int, position: int) -> None:
    with torch.profiler.profile() as profile:
        for step in range(20):
            runner.step(_decode_plan(batch, position + step))
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22))


def _prefill(model: Decoder, machine: Machine, chunk: int, args: argparse.Namespace) -> None:
    wall, cpu = float("inf"), float("inf")
    for _ in range(8):
        runner = _runner(model, args, 1, chunk)
        _start(runner, 0, chunk, chunk, 0.0)
        started, started_cpu = time.perf_counter(), time.thread_time()
        runner.step(StepPlan((ScheduledChunk(0, 0, chunk, True),)))
        wall = min(wall, time.perf_counter() - started)
        cpu = min(cpu, time.thread_time() - started_cpu)
    in_layers = sum(x.num_inputs * x.num_outputs for x in model.weights.layer_linears)
    floor = 2 * chunk * in_layers / machine.flops
    print(
        f"prefill chunk {chunk:4d}  wall {1e3 * wall:7.2f}  cpu {1e3 * cpu:7.2f}  "
        f"floor {1e3 * floor:6.2f} ms  ({wall / floor:.1f} x)  {chunk / wall:7.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
