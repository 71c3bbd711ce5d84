"""Three orders of the paged KV store: what decode attention reads, what a transfer copies.

Run: python benchmarks/kv_layout.py [--threads 1] [--repeats 30]
  block, heads out    [blocks, layers, 2, heads, block_size, head_dim]   (engine/kv_pool.py)
  block, tokens out   [blocks, layers, 2, block_size, heads, head_dim]
  per layer           [layers, 2, blocks, heads, block_size, head_dim]
The read is what a decode step does: gather the blocks of every sequence of every layer into
[items, heads, tokens, head_dim], then two batched products.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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


def _copy_all(copy: Callable[[int], object], blocks: list[int]) -> None:
    for block in blocks:
        copy(block)


Pair = tuple[Callable[[], object], Callable[[int], object]]


def _attend(keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(query, keys.transpose(1, 2)), values)


def _query(case: Case, items: int) -> Tensor:
    return torch.randn(items * case.num_heads, QUERY_ROWS, case.head_dim)


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
