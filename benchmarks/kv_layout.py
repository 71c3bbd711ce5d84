"""Orders of the paged KV store: what decode attention reads, what a transfer copies.

Run: python benchmarks/kv_layout.py [--threads 1] [--repeats 30]
  block, heads first  [blocks, heads, layers, 2, block_size, head_dim]
  block, heads out    [blocks, layers, 2, heads, block_size, head_dim]   (engine/kv_pool.py)
  block, tokens out   [blocks, layers, 2, block_size, heads, head_dim]
  per layer           [layers, 2, blocks, heads, block_size, head_dim]
The read is what a decode step does: gather the blocks of every sequence of every layer into
[items, heads, tokens, head_dim], then two batched products.

Run: python -m benchmarks.kv_layout --kernel [--repeats 99]
The compiled kernel, which reads the pool in place, by turns over pools whose heads lie in one
group, as above, and in several, [blocks, groups, layers, 2, heads of a group, block_size,
head_dim]: CPU time of a step's attention in all layers, and the ratios within each turn.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from engine.attention.batch_over import batch_over
from engine.attention.native import NativeAttention
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention
from engine.native.choice import choose_kernels

NUM_BLOCKS = 2048
SPLIT_TOKENS = 64
QUERY_ROWS = 4


@dataclass(frozen=True)
class Case:
    """A model's KV shape and a decode batch."""

    name: str
    num_layers: int
    num_heads: int
    head_dim: int
    block_size: int
    batch: int
    context: int


CASES = (
    Case("2M model", 4, 2, 64, 16, batch=8, context=256),
    Case("2M model", 4, 2, 64, 16, batch=32, context=512),
    Case("0.5B model (Qwen2)", 24, 2, 64, 16, batch=8, context=512),
    Case("1B model (Llama 3.2)", 16, 8, 64, 16, batch=4, context=512),
)


@dataclass(frozen=True)
class Step:
    """What the compiled kernel is given: sequences of `context` tokens, the last `queries` new."""

    name: str
    layout: KvLayout
    num_heads: int
    batch: int
    context: int
    queries: int


def _steps() -> list[Step]:
    shapes = (
        ("2M model", KvLayout(4, 2, 64, 16, "float32"), 4),
        ("0.1B model", KvLayout(12, 4, 64, 16, "bfloat16"), 12),
        ("1B model (Llama 3.2)", KvLayout(16, 8, 64, 16, "bfloat16"), 32),
        ("8B model (Llama 3.1)", KvLayout(32, 8, 128, 16, "bfloat16"), 32),
    )
    sizes = ((1, 512, 1), (8, 300, 1), (4, 1024, 1), (1, 512, 256))
    return [Step(*shape, *size) for shape in shapes for size in sizes]


STEPS = _steps()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--kernel", action="store_true", help="the compiled kernel, heads in groups"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.kernel:
        for step in STEPS:
            _run_kernel(step, args.repeats)
        return
    for case in CASES:
        _run(case, args.repeats)


def _run(case: Case, repeats: int) -> None:
    c = case
    blocks = min(NUM_BLOCKS, (1 << 28) // (c.num_layers * 2 * c.num_heads * c.head_dim * 64))
    splits = c.context // SPLIT_TOKENS
    picked = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
    tables = picked.repeat(math.ceil(c.batch * c.context / c.block_size / blocks))
    tables = tables[: c.batch * c.context // c.block_size].view(c.batch * splits, -1)
    block_bytes = c.num_layers * 2 * c.num_heads * c.block_size * c.head_dim * 4
    print(
        f"\n{c.name}: {c.num_layers} layers, {c.num_heads} KV heads of {c.head_dim}, block of "
        f"{c.block_size} tokens = {block_bytes // 1024} KiB; batch {c.batch}, context {c.context}"
    )
    moved = picked[:64].tolist()
    for name, (read, copy) in {
        "block, heads first": _block_heads_first(c, blocks, tables),
        "block, heads out": _block_heads_out(c, blocks, tables),
        "block, tokens out": _block_tokens_out(c, blocks, tables),
        "per layer": _per_layer(c, blocks, tables),
    }.items():
        read_ms = _fastest_ms(read, repeats)
        copy_ms = _fastest_ms(partial(_copy_all, copy, moved), repeats)
        rate = len(moved) * block_bytes / copy_ms / 1e6
        print(
            f"  {name:18s} decode attention, all layers {read_ms:8.2f} ms    "
            f"copy of 64 blocks {copy_ms:7.3f} ms ({rate:5.1f} GB/s)"
        )


def _run_kernel(step: Step, repeats: int) -> None:
    layout = step.layout
    per_sequence = step.context // layout.block_size + 1
    num_blocks = max(256, step.batch * per_sequence)
    tables = np.random.default_rng(0).permutation(num_blocks)[: step.batch * per_sequence]
    pieces = [(step.context - step.queries, step.queries)] * step.batch
    batch = batch_over(tables.reshape(step.batch, per_sequence), pieces, layout.block_size)
    layers = (LayerAttention(scale=layout.head_dim**-0.5),) * layout.num_layers
    kernels = choose_kernels("native")
    assert kernels is not None
    num_tokens = step.batch * step.queries
    query = torch.randn(num_tokens, step.num_heads, layout.head_dim)
    key, value = torch.randn(2, num_tokens, layout.num_kv_heads, layout.head_dim)
    # The control is a second pool of the first order.
    pools = [KvPool(replace(layout, head_groups=groups), num_blocks) for groups in _groups(layout)]
    attention = [NativeAttention(p.layout, step.num_heads, layers, kernels) for p in pools]
    for pool in pools:
        pool.tensor.copy_(torch.randn(layout.block_size, 1))

    def cpu_ms(index: int) -> float:
        started_s = time.process_time()
        attend = attention[index].begin(batch, pools[index]).attend
        for layer in range(layout.num_layers):
            attend(layer, query, key, value)
        return 1e3 * (time.process_time() - started_s)

    turns: list[list[float]] = []
    for turn in range(repeats + 2):
        order = [(turn + offset) % len(pools) for offset in range(len(pools))]
        taken = {index: cpu_ms(index) for index in order}
        turns.append([taken[index] for index in range(len(pools))])
    del turns[:2]
    print(
        f"{step.name}, {layout.dtype}, {step.batch} x {step.context} tokens, {step.queries} new "
        f"each: {statistics.median(turn[0] for turn in turns):.3f} ms in one group of heads;",
        flush=True,
    )
    for index, groups in list(enumerate(_groups(layout)))[1:]:
        low, middle, high = statistics.quantiles((t[index] / t[0] for t in turns), n=4)
        what = "control" if groups == 1 else f"{groups} groups"
        print(f"    {what:9s} x {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def _groups(layout: KvLayout) -> list[int]:
    return [1, 1, *sorted({2, 4, layout.num_kv_heads} & set(range(1, layout.num_kv_heads + 1)))]


def _copy_all(copy: Callable[[int], object], blocks: list[int]) -> None:
    for block in blocks:
        copy(block)


Pair = tuple[Callable[[], object], Callable[[int], object]]


def _attend(keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(query, keys.transpose(1, 2)), values)


def _query(case: Case, items: int) -> Tensor:
    return torch.randn(items * case.num_heads, QUERY_ROWS, case.head_dim)


def _block_heads_first(c: Case, blocks: int, tables: Tensor) -> Pair:
    pool = torch.randn(blocks, c.num_heads, c.num_layers, 2, c.block_size, c.head_dim)
    rows = pool.view(-1, c.block_size * c.head_dim)
    first = tables[:, None, :] * (c.num_layers * 2 * c.num_heads)
    first = first + torch.arange(c.num_heads)[:, None] * (c.num_layers * 2)
    query, spare = _query(c, len(tables)), pool[:64].clone()
    out = [torch.empty(first.numel(), rows.shape[1]) for _ in range(2)]
    views = [o.view(-1, SPLIT_TOKENS, c.head_dim) for o in out]

    def read() -> None:
        for layer in range(c.num_layers):
            for kind in range(2):
                torch.index_select(rows[layer * 2 + kind :], 0, first.view(-1), out=out[kind])
            _attend(views[0], views[1], query)

    return read, lambda block: spare[block % 64].copy_(pool[block])


def _block_heads_out(c: Case, blocks: int, tables: Tensor) -> Pair:
    pool = torch.randn(blocks, c.num_layers, 2, c.num_heads, c.block_size, c.head_dim)
    rows = pool.view(-1, c.block_size * c.head_dim)
    first = tables[:, None, :] * (c.num_layers * 2 * c.num_heads)
    first = first + torch.arange(c.num_heads)[:, None]
    query, spare = _query(c, len(tables)), pool[:64].clone()
    out = [torch.empty(first.numel(), rows.shape[1]) for _ in range(2)]
    views = [o.view(-1, SPLIT_TOKENS, c.head_dim) for o in out]

    def read() -> None:
        for layer in range(c.num_layers):
            for kind in range(2):
                offset = (layer * 2 + kind) * c.num_heads
                torch.index_select(rows[offset:], 0, first.view(-1), out=out[kind])
            _attend(views[0], views[1], query)

    return read, lambda block: spare[block % 64].copy_(pool[block])


def _block_tokens_out(c: Case, blocks: int, tables: Tensor) -> Pair:
    pool = torch.randn(blocks, c.num_layers, 2, c.block_size, c.num_heads, c.head_dim)
    rows = pool.view(-1, c.block_size * c.num_heads * c.head_dim)
    first = (tables * (c.num_layers * 2)).view(-1)
    query, spare = _query(c, len(tables)), pool[:64].clone()
    gathered = torch.empty(len(first), rows.shape[1])
    tokens = gathered.view(len(tables), SPLIT_TOKENS, c.num_heads, c.head_dim).transpose(1, 2)
    out = [torch.empty(tokens.shape) for _ in range(2)]
    views = [o.view(-1, SPLIT_TOKENS, c.head_dim) for o in out]

    def read() -> None:
        for layer in range(c.num_layers):
            for kind in range(2):
                torch.index_select(rows[layer * 2 + kind :], 0, first, out=gathered)
                # The batch of products needs the heads outside: a second copy.
                out[kind].copy_(tokens)
            _attend(views[0], views[1], query)

    return read, lambda block: spare[block % 64].copy_(pool[block])


def _per_layer(c: Case, blocks: int, tables: Tensor) -> Pair:
    pool = torch.randn(c.num_layers, 2, blocks, c.num_heads, c.block_size, c.head_dim)
    rows = pool.view(c.num_layers, 2, -1, c.block_size * c.head_dim)
    first = (tables[:, None, :] * c.num_heads + torch.arange(c.num_heads)[:, None]).reshape(-1)
    query = _query(c, len(tables))
    spare = torch.empty(64, c.num_layers, 2, c.num_heads, c.block_size, c.head_dim)
    out = [torch.empty(first.numel(), rows.shape[3]) for _ in range(2)]
    views = [o.view(-1, SPLIT_TOKENS, c.head_dim) for o in out]

    def read() -> None:
        for layer in range(c.num_layers):
            for kind in range(2):
                torch.index_select(rows[layer, kind], 0, first, out=out[kind])
            _attend(views[0], views[1], query)

    return read, lambda block: spare[block % 64].copy_(pool[:, :, block])


def _fastest_ms(work: Callable[[], object], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return 1e3 * best


if __name__ == "__main__":
    main()
