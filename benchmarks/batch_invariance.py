"""How torch's products depend on the number of rows, and what the engine's remedy costs.

Run: python benchmarks/batch_invariance.py [--threads 1]
Prints, for each shape, the row counts that give a row the same bits, with the weight as saved
([outputs, inputs], transposed on the way), stored as [inputs, outputs], and packed by oneDNN; what
the engine chooses without compiled kernels; then the time of a product by the number of rows,
`engine` with the kernels that this machine has. At last, whether the number of products in a batch
changes a bit of attention.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it

from engine.linear import Linear
from engine.native.choice import choose_kernels
from engine.packed_product import can_pack
from engine.row_tiles import CANDIDATE_ROWS, ProductShape, find_row_tiles, row_count_groups

CPU = torch.device("cpu")
SHAPES = ((256, 512), (688, 256), (256, 2048), (896, 1152), (1024, 3072), (4864, 896))
PACKED_TRIED_ROWS = (*range(1, 9), 12, 16, 24, 31, 32, 64, 100, 128, 256)
TRIED_BATCHES = (*range(2, 34), 48, 63, 64, 100, 128, 257, 384, 513)
TIMED_ROWS = (1, 2, 4, 16, 32, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s)")
    for dtype in (torch.float32, torch.bfloat16):
        for inner, columns in SHAPES:
            _products(inner, columns, dtype)
    for head_dim in (32, 64, 128):
        _attention(head_dim)
    _elementwise()


def _products(inner: int, columns: int, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    print(f"\n{name} [rows, {inner}] @ [{inner}, {columns}]")
    for label, transposed in (("as saved", True), ("as stored", False)):
        shape = ProductShape(inner, columns, dtype, CPU, transposed=transposed)
        groups = [list(sizes) for sizes, _ in row_count_groups(shape, CANDIDATE_ROWS)]
        print(f"  {label:10s} equal bits: {groups}")
    is_packed = can_pack(dtype, CPU)
    engine_shape = ProductShape(inner, columns, dtype, CPU, packed=is_packed)
    if is_packed:
        groups = [list(sizes) for sizes, _ in row_count_groups(engine_shape, PACKED_TRIED_ROWS)]
        print(f"  {'packed':10s} equal bits: {groups}")
    chosen = find_row_tiles([engine_shape])
    print(f"  {'chosen':10s} {list(chosen.sizes)}, fingerprint {chosen.fingerprint}")
    matrix = torch.randn(inner, columns).to(dtype)
    saved = matrix.t().contiguous()
    by_torch, linear = Linear(saved), Linear(saved, kernels=choose_kernels())
    forms: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("as saved", lambda rows: F.linear(rows, saved)),
        ("as stored", lambda rows: torch.mm(rows, matrix)),
        ("packed" if is_packed else "torch", lambda rows: by_torch(rows, (0, len(rows)))),
        ("engine", lambda rows: linear(rows, (0, len(rows)))),
    ]
    for label, multiply in forms:
        times = {
            count: _microseconds(multiply, torch.randn(count, inner).to(dtype))
            for count in TIMED_ROWS
        }
        row = "  ".join(f"{count}: {micros:.0f}" for count, micros in times.items())
        print(f"  {label:10s} us by rows   {row}")


def _attention(head_dim: int) -> None:
    for label, inner, columns, transposed in (
        ("queries x keys", head_dim, 64, True),
        ("weights x values", 64, head_dim, False),
    ):
        shape = ProductShape(
            inner, columns, torch.float32, CPU, batched=True, transposed=transposed
        )
        groups = [list(sizes) for sizes, _ in row_count_groups(shape, CANDIDATE_ROWS)]
        print(f"\nfloat32 attention, head_dim {head_dim}, {label}: {groups}")
        print(f"  numbers of products that give other bits: {_batches_that_differ(shape)}")


def _batches_that_differ(shape: ProductShape) -> list[tuple[int, int]]:
    """(rows, products) whose bits are not those of so many rows in a single product."""
    matrix = torch.randn(shape.inner, shape.columns)
    found = []
    for rows in CANDIDATE_ROWS:
        left = torch.randn(rows, shape.inner)
        alone = torch.bmm(left[None], _batch_of(matrix, 1, shape.transposed))
        for count in TRIED_BATCHES:
            lefts = left.expand(count, -1, -1).contiguous()
            together = torch.bmm(lefts, _batch_of(matrix, count, shape.transposed))
            if not bool((together == alone).all()):
                found.append((rows, count))
    return found


def _batch_of(matrix: torch.Tensor, count: int, transposed: bool) -> torch.Tensor:
    if transposed:
        return matrix.t().expand(count, -1, -1).contiguous().transpose(1, 2)
    return matrix.expand(count, -1, -1).contiguous()


def _elementwise() -> None:
    """Elements that differ between a long tensor and the same elements one by one."""
    values = torch.randn(4096).abs().add(0.1)
    print()
    for label, function in (("silu", F.silu), ("exp", torch.exp), ("rsqrt", torch.rsqrt)):
        whole = function(values)
        single = torch.cat([function(values[i : i + 1].clone()) for i in range(len(values))])
        print(f"float32 {label}: {int((whole != single).sum())} of {len(values)} elements differ")


def _microseconds(multiply: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> float:
    """Fastest of many calls: the machine is shared."""
    best = float("inf")
    for _ in range(100):
        started = time.perf_counter()
        multiply(rows)
        best = min(best, time.perf_counter() - started)
    return 1e6 * best


if __name__ == "__main__":
    main()
