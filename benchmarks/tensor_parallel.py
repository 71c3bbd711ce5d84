"""What a decode step takes with one process and with two, by either way of cutting a model.

Run: python benchmarks/tensor_parallel.py [--model FOLDER] [--batch 8] [--steps 40]
On a CPU, in float32, one thread for each rank, exchanging by gloo over loopback. Ranks that gather
must say the same as one process; ranks that add up may not, after many tokens.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from engine.bundled import bundled_model_path
from engine.loading import load_model
from engine.rank_exchange import DistributedExchange
from engine.runner import Runner
from engine.tensor_parallel import Reduce
from engine.tensor_parallel_testing import rank_runner
from engine.testing import GREEDY
from runtime.logging import configure_logging
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from worker.rank_group_testing import NUM_BLOCKS, rank_config, started_ranks

PROMPT, BLOCK_SIZE = tuple(range(5, 53)), 16
WAYS: tuple[Reduce, ...] = ("gather", "sum")
NUM_TIMED = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=bundled_model_path())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    needed = args.batch * _blocks_of(args.steps)
    if needed > NUM_BLOCKS:
        parser.error(f"needs {needed} of {NUM_BLOCKS} KV blocks; lower --batch or --steps")
    configure_logging("benchmark", level="warning")
    torch.set_num_threads(1)
    for size in (2, 4):
        _time_exchanges(size)
    whole = rank_runner(load_model(args.model), BLOCK_SIZE, NUM_BLOCKS)
    expected = _run(whole, args.batch, args.steps, "one process")
    for reduce in WAYS:
        config = rank_config(args.model, 2, dtype="float32", reduce=reduce)
        with started_ranks(config) as ranks:
            told = _run(ranks.runner, args.batch, args.steps, f"two processes, {reduce}")
        print(f"{reduce}: {'the same tokens' if told == expected else 'OTHER TOKENS'}")


def _time_exchanges(size: int) -> None:
    """Prints what the exchanges of one layer of the shape of Llama 3 8B take, in bfloat16."""
    hidden, inner = 4096, 14336
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(size) as threads:
        ends = [DistributedExchange(rank, size, torch.device("cpu"), 60.0) for rank in range(size)]
        list(threads.map(lambda end: end.join(Path(folder) / "meeting", 60.0), ends))

        def layer_s(end: DistributedExchange, num_rows: int, reduce: Reduce) -> float:
            widths = [hidden, hidden, inner, hidden]
            shares = [torch.zeros(num_rows, width // size).bfloat16() for width in widths]
            part = torch.zeros(num_rows, hidden).bfloat16()
            began_at_s = time.perf_counter()
            if reduce == "gather":
                for share in shares:
                    end.all_gather(share)
            else:
                end.all_sum(part)
                end.all_sum(part)
            return time.perf_counter() - began_at_s

        for num_rows in (1, 16, 256):
            for reduce in WAYS:
                taken_s = [
                    max(threads.map(partial(layer_s, num_rows=num_rows, reduce=reduce), ends))
                    for _ in range(NUM_TIMED)
                ]
                print(
                    f"exchanges of a layer, {size} ranks, {num_rows} rows, {reduce}: "
                    f"{1e3 * statistics.median(taken_s):.2f} ms, "
                    f"{1e3 * min(taken_s):.2f} the shortest"
                )


def _blocks_of(num_steps: int) -> int:
    return -(-(len(PROMPT) + num_steps) // BLOCK_SIZE)


def _run(runner: Runner, batch: int, num_steps: int, label: str) -> list[tuple[int, ...]]:
    """The tokens of every step; prints what a step took."""
    width = _blocks_of(num_steps)
    for slot in range(batch):
        blocks = tuple(range(slot * width, (slot + 1) * width))
        runner.add(SequenceStart(slot, PROMPT, len(PROMPT), GREEDY, blocks))
    runner.step(_plan(batch, 0, len(PROMPT)))
    told, taken = [], []
    for index in range(num_steps):
        began_at_s = time.perf_counter()
        told.append(runner.step(_plan(batch, len(PROMPT) + index, 1)).token_ids)
        taken.append(1e3 * (time.perf_counter() - began_at_s))
    print(f"{label}: {statistics.median(taken):.1f} ms a step, {min(taken):.1f} the shortest")
    return told


def _plan(batch: int, start: int, num_tokens: int) -> StepPlan:
    return StepPlan(tuple(ScheduledChunk(slot, start, num_tokens, True) for slot in range(batch)))


if __name__ == "__main__":
    main()
