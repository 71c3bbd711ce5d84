"""Products on the matrix unit: right, and the same bits whatever else is computed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from engine.linear import Linear, product_shapes
from engine.native.choice import choose_kernels
from engine.native.library import KernelLibrary
from engine.native.products import TiledMatrix
from engine.row_tiles import find_row_tiles

SHAPES = pytest.mark.parametrize(
    ("outputs", "inputs"), [(96, 64), (7, 33), (1, 1), (300, 900), (1280, 768), (768, 2048)]
)


@pytest.fixture
def kernels() -> KernelLibrary:
    found = choose_kernels()
    if found is None or not found.can_multiply:
        pytest.skip("no matrix unit, or no C compiler, on this machine")
    return found


@pytest.fixture(autouse=True)
def one_thread_at_the_end() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def random_matrix(num_rows: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_rows + width)
    return torch.randn(num_rows, width, generator=generator).bfloat16()


@SHAPES
def test_a_product_is_rounded_once(kernels: KernelLibrary, outputs: int, inputs: int) -> None:
    weight, rows = random_matrix(outputs, inputs), random_matrix(50, inputs)
    actual = TiledMatrix(weight, kernels).multiply(rows).double()
    exact = rows.double() @ weight.double().t()
    torch.testing.assert_close(actual, exact, rtol=2**-8, atol=1e-6 * inputs)


@SHAPES
def test_the_weight_comes_back_as_it_was(kernels: KernelLibrary, outputs: int, inputs: int) -> None:
    weight = random_matrix(outputs, inputs)
    assert torch.equal(TiledMatrix(weight, kernels).dense(), weight)


@SHAPES
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_number_of_rows_and_threads(
    kernels: KernelLibrary, outputs: int, inputs: int, num_threads: int
) -> None:
    matrix, rows = TiledMatrix(random_matrix(outputs, inputs), kernels), random_matrix(300, inputs)
    expected = matrix.multiply(rows)
    torch.set_num_threads(num_threads)
    for count in (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 49, 100, 256, 257, 288, 299):
        for first in (0, 300 - count):
            actual = matrix.multiply(rows[first : first + count].clone())
            assert torch.equal(actual, expected[first : first + count]), count


def test_what_is_not_a_number_stays_in_its_row(kernels: KernelLibrary) -> None:
    rows = random_matrix(40, 100)
    rows[17, 99] = torch.nan
    out = TiledMatrix(random_matrix(50, 100), kernels).multiply(rows)
    assert torch.isnan(out[17]).all()
    assert torch.isfinite(out[torch.arange(40) != 17]).all()


def test_every_row_count_is_allowed(kernels: KernelLibrary) -> None:
    linear = Linear(random_matrix(64, 64), kernels=kernels)
    tiles = find_row_tiles(product_shapes([linear]))
    assert tiles.cut(331) == (0, 331)
    assert tiles.cut(0) == (0,)
