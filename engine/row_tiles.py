"""Row counts at which a matrix product gives every row the same bits.

A library picks another kernel, and with it another order of summation, for another number of rows;
a token would then depend on its batch. Here the row counts that agree are found by experiment when
a model is loaded, and every product is cut into pieces of those counts. The experiment multiplies
numbers whose exact products are zero: what remains is rounding noise, which is a fingerprint of the
order of summation. Measured: docs/decisions/batch-invariance.md.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from torch import Tensor

from engine.packed_product import multiply_packed, pack

CANDIDATE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# For packed matrices: their kernels agree at nearly every count, so that finer steps waste fewer
# rows of padding; one to three rows take no less time than four.
PACKED_CANDIDATE_ROWS = (
    *range(4, 32, 4), *range(32, 64, 8), *range(64, 128, 16), *range(128, 257, 32)
)  # fmt: skip
# Trying many rows on a matrix with very many columns (a vocabulary) would take seconds.
_WIDE_COLUMNS = 16_384
_MAX_ROWS_OF_WIDE = 64
_DRAWN_COLUMNS = 2048
# Drawn columns where they are compared with their own copies: an odd number, so that the copies
# lie at every place of a vector.
_REPEATED_COLUMNS = 11
# Numbers of products in one batch. No number was found that changes a bit (1 to 777, with one and
# two threads; the benchmark repeats it), so a few stand for all: one product, which the library
# may treat as a plain one; fewer and more than there are threads; an odd number and a power of two.
_TRIED_BATCHES = (1, 2, 5, 16)


class NoCommonRowCount(RuntimeError):
    """The matrix library gives no row count at which all products of the model agree."""

    def __init__(self) -> None:
        super().__init__(
            "no row count gives reproducible matrix products on this machine; "
            "use the device cpu or another build of torch"
        )


@dataclass(frozen=True, slots=True)
class ProductShape:
    """One kind of product: rows [rows, inner] times a matrix [inner, columns]."""

    inner: int
    columns: int
    dtype: torch.dtype
    device: torch.device
    # True where the matrix is a transposed view of contiguous [columns, inner] and many such
    # products run as one batch (attention scores).
    batched: bool = False
    transposed: bool = False
    # The matrix is packed (engine/packed_product.py).
    packed: bool = False

    @property
    def candidates(self) -> tuple[int, ...]:
        """Row counts worth trying."""
        if not self.packed:
            return CANDIDATE_ROWS
        is_wide = self.columns > _WIDE_COLUMNS
        most = _MAX_ROWS_OF_WIDE if is_wide else PACKED_CANDIDATE_ROWS[-1]
        return tuple(rows for rows in PACKED_CANDIDATE_ROWS if rows <= most)


@dataclass(frozen=True, slots=True)
class RowTiles:
    """The allowed row counts, ascending, and the fingerprint of their arithmetic."""

    # Empty: every count is allowed.
    sizes: tuple[int, ...]
    # Equal fingerprints mean equal bits for the same model: the same order of summation.
    fingerprint: str

    def smallest_at_least(self, rows: int) -> int:
        """The allowed count that wastes least for `rows`; the largest when none is enough."""
        if not self.sizes:
            return rows
        return next((size for size in self.sizes if size >= rows), self.sizes[-1])

    def cut(self, rows: int) -> tuple[int, ...]:
        """Boundaries [0, a, b, ..., n] of pieces with allowed counts; n >= rows is the padding.

        A rest is padded up when most of the larger piece is used, else cut further.
        """
        if not self.sizes:
            return (0, rows) if rows else (0,)
        bounds = [0]
        rest = rows
        while rest > 0:
            up = self.smallest_at_least(rest)
            down = next((size for size in reversed(self.sizes) if size <= rest), up)
            is_well_filled = up <= _ALWAYS_PAD_ROWS or 4 * rest > 3 * up
            piece = up if rest <= up and is_well_filled else down
            bounds.append(bounds[-1] + piece)
            rest -= piece
        return tuple(bounds)


# Below this a second call costs more than the rows that padding wastes.
_ALWAYS_PAD_ROWS = 16


def multiply_in_tiles(
    multiply: Callable[[Tensor], Tensor], rows: Tensor, bounds: tuple[int, ...]
) -> Tensor:
    """multiply(rows), in the pieces that `RowTiles.cut` gave."""
    if len(bounds) == 2:
        return multiply(rows)
    return torch.cat([multiply(rows[start:end]) for start, end in pairwise(bounds)])


def find_row_tiles(shapes: Iterable[ProductShape], min_rows: int = 1) -> RowTiles:
    """The best common set of row counts for all these products, at least `min_rows` the largest.

    Without any product every count is allowed.
    Best: contains a count that one row can afford, then the largest count, then the most counts.
    Deterministic for one machine, torch build and number of threads; nothing is timed.
    Raises: NoCommonRowCount.
    """
    distinct = tuple(dict.fromkeys(shapes))
    if not distinct:
        return RowTiles((), "any")
    groups = [row_count_groups(shape, shape.candidates) for shape in distinct]
    affordable = max(_affordable_rows(shape.dtype) for shape in distinct)
    best: tuple[tuple[bool, int, int], tuple[int, ...], str] | None = None
    for choice in product(*groups):
        common = set.intersection(*(set(sizes) for sizes, _ in choice))
        if not common or max(common) < min_rows:
            continue
        key = (min(common) <= affordable, max(common), len(common))
        if best is None or key > best[0]:
            digest = hashlib.sha256("".join(mark for _, mark in choice).encode()).hexdigest()
            best = (key, tuple(sorted(common)), digest[:16])
    if best is None:
        raise NoCommonRowCount()
    return RowTiles(best[1], best[2])


def _affordable_rows(dtype: torch.dtype) -> int:
    """Rows that cost a decode step of one sequence little more than one row would."""
    # Matrix units for 16 bits work on 16 to 32 rows at once; float32 time grows from a few rows on.
    return 4 if dtype == torch.float32 else 32


def row_count_groups(
    shape: ProductShape, candidates: tuple[int, ...]
) -> list[tuple[tuple[int, ...], str]]:
    """Row counts grouped by the bits they give, each with a mark of those bits."""
    multiply = _noise_product(shape)
    groups: dict[bytes, list[int]] = {}
    for rows in candidates:
        results = multiply(rows)
        first = results[0]
        # A count whose own rows disagree depends on the position in the batch.
        if bool((results == first).all()):
            groups.setdefault(first.float().cpu().numpy().tobytes(), []).append(rows)
    return [(tuple(sizes), hashlib.sha256(bits).hexdigest()[:16]) for bits, sizes in groups.items()]


def columns_agree(shape: ProductShape, num_columns: int, row_counts: Sequence[int]) -> bool:
    """Whether a matrix of some of the columns gives each of them the bits that it has in `shape`.

    Wherever a column lies, in both: a share of a matrix takes columns from anywhere.
    """
    if num_columns == shape.columns:
        return True
    marks: set[bytes] = set()
    for columns in (shape.columns, num_columns):
        multiply = _noise_product(replace(shape, columns=columns), _REPEATED_COLUMNS)
        for rows in row_counts:
            # Copies of the drawn columns, of which the last one is cut off.
            results = multiply(rows).float().cpu()
            missing = -columns % _REPEATED_COLUMNS
            filled = torch.nn.functional.pad(results, (0, missing))
            copies = filled.view(rows, -1, _REPEATED_COLUMNS)
            if missing:
                copies[:, -1, -missing:] = copies[:, 0, -missing:]
            if not bool((copies == copies[0, 0]).all()):
                return False
            marks.add(copies[0, 0].numpy().tobytes())
    return len(marks) <= 1


def _noise_product(shape: ProductShape, num_drawn: int = _DRAWN_COLUMNS) -> Callable[[int], Tensor]:
    """A function from a row count to the product of that many equal rows with one matrix.

    The row is (a, -a) and the matrix (w; w), in one random order: the exact product is zero.
    """
    generator = torch.Generator().manual_seed(shape.inner)
    half = (shape.inner + 1) // 2
    order = torch.randperm(2 * half, generator=generator)[: shape.inner]
    row = torch.randn(half, generator=generator)
    # Columns may repeat: what varies is the order along `inner`, and drawing takes longest.
    matrix = torch.randn(half, min(shape.columns, num_drawn), generator=generator)
    matrix = matrix[:, torch.arange(shape.columns) % matrix.shape[1]]
    row = torch.cat((row, -row))[order].to(shape.device, shape.dtype)
    matrix = torch.cat((matrix, matrix))[order].to(shape.device, shape.dtype)
    packed = pack(matrix.t()) if shape.packed else None
    if shape.transposed:
        matrix = matrix.t().contiguous().t()

    def multiply(rows: int) -> Tensor:
        left = row.expand(rows, -1).contiguous()
        if packed is not None:
            return multiply_packed(left, packed)
        if not shape.batched:
            return torch.mm(left, matrix)
        # A few batch sizes at once: each must give the same bits in each of its products.
        flat = [
            torch.bmm(left.expand(count, -1, -1).contiguous(), _stack(matrix, count, shape))
            for count in _TRIED_BATCHES
        ]
        return torch.cat([part.reshape(-1, shape.columns) for part in flat])

    return multiply


def _stack(matrix: Tensor, count: int, shape: ProductShape) -> Tensor:
    """`count` copies of the matrix with the memory order that attention has."""
    if shape.transposed:
        return matrix.t().expand(count, -1, -1).contiguous().transpose(1, 2)
    return matrix.expand(count, -1, -1).contiguous()
