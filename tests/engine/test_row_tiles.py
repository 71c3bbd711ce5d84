from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.row_tiles import (
    CANDIDATE_ROWS,
    ProductShape,
    RowTiles,
    find_row_tiles,
    multiply_in_tiles,
)

SIZES = st.sets(st.sampled_from(CANDIDATE_ROWS), min_size=1).map(lambda s: tuple(sorted(s)))


@given(sizes=SIZES, rows=st.integers(0, 700))
def test_a_cut_covers_the_rows_with_allowed_pieces_only(sizes: tuple[int, ...], rows: int) -> None:
    bounds = RowTiles(sizes, "").cut(rows)
    pieces = [end - start for start, end in pairwise(bounds)]
    assert bounds[0] == 0
    assert bounds[-1] >= rows
    assert set(pieces) <= set(sizes)
    # No piece is padding only.
    assert not pieces or rows > bounds[-2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inner", "columns"), [(96, 160), (172, 96), (256, 688), (900, 300)])
def test_every_allowed_row_count_gives_the_same_bits(
    dtype: torch.dtype, inner: int, columns: int
) -> None:
    torch.set_num_threads(1)
    tiles = find_row_tiles([ProductShape(inner, columns, dtype, torch.device("cpu"))])
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, inner, generator=generator).to(dtype)
    matrix = torch.randn(inner, columns, generator=generator).to(dtype)
    results = [
        torch.cat([rows[i : i + size] @ matrix for i in range(0, 256, size)])
        for size in tiles.sizes
    ]
    assert all(torch.equal(result, results[0]) for result in results)


def test_products_in_pieces_equal_the_product_of_each_piece() -> None:
    rows, matrix = torch.randn(12, 32), torch.randn(32, 16)
    pieces = torch.cat((rows[:8] @ matrix, rows[8:12] @ matrix))
    assert torch.equal(multiply_in_tiles(lambda part: part @ matrix, rows, (0, 8, 12)), pieces)


def test_the_common_counts_of_several_products_serve_each_of_them() -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    shapes = [ProductShape(64, 64, torch.float32, cpu), ProductShape(1024, 256, torch.float32, cpu)]
    common = find_row_tiles(shapes)
    assert common.sizes
    assert find_row_tiles(shapes) == common


def test_the_fingerprint_depends_on_the_arithmetic() -> None:
    cpu = torch.device("cpu")
    one = find_row_tiles([ProductShape(64, 64, torch.float32, cpu)])
    other = find_row_tiles([ProductShape(64, 64, torch.bfloat16, cpu)])
    assert one.fingerprint != other.fingerprint
