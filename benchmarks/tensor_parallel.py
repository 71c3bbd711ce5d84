"""What a decode step takes with one process and with two, and that both say the same.

Run: python benchmarks/tensor_parallel.py [--model FOLDER] [--batch 8] [--steps 40]
On a CPU, in float32, one thread for each rank, exchanging by gloo over loopback.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from engine.bundled import bundled_model_path
from engine.loading import load_model
from engine.runner import Runner
from engine.tensor_parallel_testing import rank_runner
from engine.testing import GREEDY
from runtime.logging import configure_logging
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from worker.rank_group_testing import NUM_BLOCKS, rank_config, started_ranks

PROMPT, BLOCK_SIZE = tuple(range(5, 53)), 16


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
    whole = rank_runner(load_model(args.model), BLOCK_SIZE, NUM_BLOCKS)
    expected = _run(whole, args.batch, args.steps, "one process")
    with started_ranks(rank_config(args.model, 2, dtype="float32")) as ranks:
        told = _run(ranks.runner, args.batch, args.steps, "two processes")
    print("the same tokens" if told == expected else "OTHER TOKENS")


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
