from itertools import pairwise

import pytest
import torch

from engine.linear import Linear, product_shapes
from engine.packed_product import can_pack, multiply_packed, pack
from engine.row_tiles import find_row_tiles

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def random_matrix(outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(outputs + inputs)
    return torch.randn(outputs, inputs, generator=generator).to(dtype)


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (7, 33), (1280, 768)])
def test_a_product_is_that_of_the_weight_as_given(
    dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    torch.set_num_threads(1)
    weight, bias = random_matrix(outputs, inputs, dtype), random_matrix(1, outputs, dtype)[0]
    linear = Linear(weight, bias)
    rows = random_matrix(12, inputs, dtype)
    expected = rows.double() @ weight.double().t() + bias.double()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    actual = linear(rows, (0, 8, 12)).double()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * inputs**0.5)
    assert (linear.num_inputs, linear.num_outputs) == (inputs, outputs)


@DTYPES
def test_the_weight_comes_back_as_it_was(dtype: torch.dtype) -> None:
    weight = random_matrix(100, 60, dtype)
    assert torch.equal(Linear(weight).dense(), weight)
    parts = [weight[:70], weight[70:]]
    assert torch.equal(Linear.fused(parts).dense(), weight)


@DTYPES
def test_no_rows_give_no_rows(dtype: torch.dtype) -> None:
    linear = Linear(random_matrix(10, 6, dtype), random_matrix(1, 10, dtype)[0])
    assert linear(torch.empty(0, 6, dtype=dtype), (0,)).shape == (0, 10)


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(160, 96), (768, 2048), (300, 900)])
def test_a_row_has_the_same_bits_at_every_allowed_row_count(
    dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    torch.set_num_threads(1)
    linear = Linear(random_matrix(outputs, inputs, dtype))
    tiles = find_row_tiles(product_shapes([linear]))
    rows = random_matrix(256, inputs, dtype)
    expected = linear(rows, tiles.cut(256))[:256]
    for size in tiles.sizes:
        bounds = tuple(range(0, 257, size))
        count = bounds[-1]
        assert torch.equal(linear(rows[:count], bounds), expected[:count])
        # Where a row lies among the others makes no difference either.
        moved = rows.roll(3, 0)[:size]
        assert torch.equal(linear(moved, (0, size))[3:], expected[: size - 3])


@pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this torch packs no matrices"
)
def test_packed_and_plain_products_are_told_apart() -> None:
    weight = random_matrix(64, 48, torch.float32)
    rows = random_matrix(8, 48, torch.float32)
    torch.testing.assert_close(multiply_packed(rows, pack(weight)), rows @ weight.t())
    (packed,) = product_shapes([Linear(weight)])
    assert packed.packed
    assert all(size in packed.candidates for size in find_row_tiles([packed]).sizes)
    bounds = find_row_tiles([packed]).cut(100)
    assert all(end - start in packed.candidates for start, end in pairwise(bounds))
