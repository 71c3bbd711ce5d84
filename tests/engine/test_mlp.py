"""A mixture of experts gives what each token would get alone, to the last bit."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.linear import Linear, product_shapes
from engine.models.mlp import DenseMlp, MixtureMlp
from engine.models.step_rows import StepRows
from engine.row_tiles import RowTiles, find_row_tiles

HIDDEN, INNER, NUM_EXPERTS = 36, 20, 7


def build(num_per_token: int, normalizes: bool, dtype: torch.dtype) -> MixtureMlp:
    generator = torch.Generator().manual_seed(1)

    def linear(num_outputs: int, num_inputs: int) -> Linear:
        weight = torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5
        return Linear(weight.to(dtype))

    experts = tuple(
        DenseMlp(linear(2 * INNER, HIDDEN), linear(HIDDEN, INNER), "silu")
        for _ in range(NUM_EXPERTS)
    )
    return MixtureMlp(linear(NUM_EXPERTS, HIDDEN), experts, num_per_token, normalizes)


@cache
def tiles_of(mlp: MixtureMlp) -> RowTiles:
    return find_row_tiles(product_shapes(mlp.linears))


def computed(mlp: MixtureMlp, rows: Tensor) -> Tensor:
    step = StepRows.of(len(rows), tiles_of(mlp))
    return mlp(step.pad(rows), step)[: len(rows)]


def by_hand(mlp: MixtureMlp, row: Tensor, num_per_token: int, normalizes: bool) -> Tensor:
    likely = torch.softmax(row @ mlp.router.dense().double().T, -1)
    weights, chosen = likely.topk(num_per_token)
    if normalizes:
        weights = weights / weights.sum()
    total = torch.zeros_like(row)
    for weight, number in zip(weights, chosen.tolist(), strict=True):
        expert = mlp.experts[number]
        gate, up = (row @ expert.gate_up.dense().double().T).chunk(2)
        gated = torch.nn.functional.silu(gate) * up
        total += weight * (gated @ expert.down.dense().double().T)
    return total


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("num_per_token", [1, 3, NUM_EXPERTS])
def test_a_token_gets_the_weighted_sum_of_its_experts(num_per_token: int, normalizes: bool) -> None:
    mlp = build(num_per_token, normalizes, torch.float32)
    rows = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(2))
    expected = [by_hand(mlp, row.double(), num_per_token, normalizes).float() for row in rows]
    torch.testing.assert_close(computed(mlp, rows), torch.stack(expected), rtol=1e-4, atol=1e-5)


class NotingLinear(Linear):
    """Notes at which row counts it was multiplied."""

    noted: set[int]

    def __call__(self, rows: Tensor, bounds: tuple[int, ...]) -> Tensor:
        assert len(rows) == bounds[-1]
        self.noted |= {end - start for start, end in pairwise(bounds)}
        return super().__call__(rows, bounds)


def test_experts_are_multiplied_at_allowed_row_counts_only() -> None:
    noting = NotingLinear(torch.randn(2 * INNER, HIDDEN))
    noting.noted = set()
    experts = tuple(
        DenseMlp(noting, Linear(torch.randn(HIDDEN, INNER)), "silu") for _ in range(NUM_EXPERTS)
    )
    mlp = MixtureMlp(Linear(torch.randn(NUM_EXPERTS, HIDDEN)), experts, 2, True)
    for num_rows in (1, 5, 40):
        step = StepRows.of(num_rows, RowTiles((4, 16), "any"))
        mlp(step.pad(torch.randn(num_rows, HIDDEN)), step)
    # Kernels that agree at every count would hide it.
    assert noting.noted <= {4, 16}
    assert noting.noted


MIXTURES = {
    dtype: build(num_per_token=3, normalizes=True, dtype=dtype)
    for dtype in (torch.float32, torch.bfloat16)
}


@pytest.mark.parametrize("dtype", MIXTURES)
@settings(max_examples=25, deadline=None)
@given(num_rows=st.integers(1, 90), seed=st.integers(0, 1000), spread=st.sampled_from([0.0, 1.0]))
def test_a_token_has_the_same_bits_whoever_else_visits_its_experts(
    dtype: torch.dtype, num_rows: int, seed: int, spread: float
) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    # With no spread all tokens are the same one, and visit the same experts.
    rows = torch.randn(1, HIDDEN, generator=generator) + spread * torch.randn(
        num_rows, HIDDEN, generator=generator
    )
    rows = rows.to(dtype)
    together = computed(MIXTURES[dtype], rows)
    for index in {0, num_rows // 2, num_rows - 1}:
        assert torch.equal(together[index], computed(MIXTURES[dtype], rows[index : index + 1])[0])
