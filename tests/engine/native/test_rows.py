"""The compiled row kernels against the torch path, and that no row depends on the others."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from engine.models.gated import choose_gated
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable, rotate
from engine.native.choice import choose_kernels
from engine.native.library import KernelLibrary
from engine.native.rows import HeadTurn, turn_heads

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# Awkward on purpose; the last one is enough for a second thread.
WIDTHS = pytest.mark.parametrize("width", [1, 15, 16, 171, 768])


@pytest.fixture
def kernels() -> KernelLibrary:
    found = choose_kernels()
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random_rows(num_rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num_rows, width, generator=generator)).to(dtype)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    tolerance = 1e-5 if actual.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def one_by_one(compute: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([compute(rows[i : i + 1].clone()) for i in range(len(rows))])


@DTYPES
@WIDTHS
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_that_of_torch_and_a_row_is_the_same_alone(
    kernels: KernelLibrary, width: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    rows, weight = random_rows(301, width, dtype), random_rows(1, width, weight_dtype, 1)[0]
    norm = RmsNorm(weight, 1e-6, kernels)
    actual = norm(rows)
    assert torch.equal(one_by_one(norm, rows), actual)
    assert_near(actual, RmsNorm(weight.float(), 1e-6)(rows))


@DTYPES
@WIDTHS
def test_the_norm_of_a_sum_leaves_the_sum(
    kernels: KernelLibrary, width: int, dtype: torch.dtype
) -> None:
    rows, added = random_rows(301, width, dtype), random_rows(301, width, dtype, 1)
    norm = RmsNorm(random_rows(1, width, dtype, 2)[0], 1e-6, kernels)
    expected = rows + added
    actual = norm.of_sum(rows, added)
    assert torch.equal(rows, expected)
    assert torch.equal(actual, norm(expected))


@DTYPES
@WIDTHS
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gated_row_is_that_of_torch_and_the_same_alone(
    kernels: KernelLibrary, width: int, dtype: torch.dtype, activation: str
) -> None:
    gated = choose_gated(activation, kernels)  # type: ignore[arg-type]
    rows = random_rows(301, 2 * width, dtype)
    actual = gated(rows)
    assert torch.equal(one_by_one(gated, rows), actual)
    assert_near(actual, choose_gated(activation)(rows))  # type: ignore[arg-type]


def test_a_gate_far_from_zero_gives_no_nan_and_nan_stays(kernels: KernelLibrary) -> None:
    gate = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4, torch.nan]])
    actual = choose_gated("silu", kernels)(torch.cat((gate, torch.ones_like(gate)), dim=1))
    torch.testing.assert_close(
        actual, torch.nn.functional.silu(gate), rtol=1e-5, atol=1e-30, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_that_is_not_a_number_stays_none(kernels: KernelLibrary, dtype: torch.dtype) -> None:
    rows = random_rows(3, 40, dtype)
    rows[1, 39] = torch.nan
    out = RmsNorm(torch.ones(40, dtype=dtype), 1e-6, kernels)(rows)
    assert torch.isnan(out[1]).all()
    assert torch.isfinite(out[[0, 2]]).all()


@DTYPES
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (20, 20), (96, 72), (288, 288)])
@pytest.mark.parametrize("is_normalised", [False, True])
def test_heads_are_normalised_and_turned_as_by_torch(
    kernels: KernelLibrary, head_dim: int, rotary_dim: int, is_normalised: bool, dtype: torch.dtype
) -> None:
    num_queries, num_keys = 6, 2
    rows = random_rows(77, (num_queries + 2 * num_keys) * head_dim, dtype)
    angles = torch.outer(torch.arange(200.0), torch.rand(rotary_dim // 2))
    table = RopeTable(angles.cos(), angles.sin())
    positions = torch.arange(120, 43, -1)
    norms = [RmsNorm(random_rows(1, head_dim, torch.float32, i)[0], 1e-6) for i in (1, 2)]

    def compute(part: Tensor, at: Tensor) -> Tensor:
        turn = HeadTurn(num_queries, num_keys, head_dim, table.cos, table.sin, at)
        return turn_heads(kernels, part, turn, *(norms if is_normalised else (None, None)))

    actual = compute(rows, positions)
    alone = torch.cat([compute(rows[i : i + 1], positions[i : i + 1]) for i in range(77)])
    assert torch.equal(actual, alone)
    heads = rows.float().view(77, -1, head_dim)
    queries, keys = heads[:, :num_queries], heads[:, num_queries : num_queries + num_keys]
    if is_normalised:
        queries, keys = norms[0](queries), norms[1](keys)
    turned = rotate(torch.cat((queries, keys), dim=1), table.at(positions))
    expected = torch.cat((turned, heads[:, num_queries + num_keys :]), dim=1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
