"""The elementwise functions: what they compute, and that no row depends on the others."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from engine.models.gated import gated_gelu_tanh, gated_silu, softcapped


@pytest.fixture
def two_threads() -> Iterator[None]:
    # Several threads cut a large tensor anywhere, also in the middle of a row.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gelu_tanh(gate: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh")


GATED = [(gated_silu, F.silu), (gated_gelu_tanh, gelu_tanh)]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("gated", "activation"), GATED, ids=["silu", "gelu_tanh"])
def test_a_gated_row_has_the_same_bits_alone_and_among_many(
    gated: Callable[[Tensor], Tensor], activation: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    rows = (4 * torch.randn(401, 2 * 171)).to(dtype)
    together = gated(rows)
    alone = torch.cat([gated(rows[i : i + 1]) for i in range(len(rows))])
    assert torch.equal(together, alone)
    gate, up = rows.float().chunk(2, dim=1)
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(together.float(), activation(gate) * up, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("gated", "activation"), GATED, ids=["silu", "gelu_tanh"])
def test_a_gate_far_from_zero_gives_no_nan(
    gated: Callable[[Tensor], Tensor], activation: Callable[[Tensor], Tensor]
) -> None:
    gate = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4]])
    actual = gated(torch.cat((gate, torch.ones_like(gate)), dim=1))
    torch.testing.assert_close(actual, activation(gate), rtol=1e-5, atol=1e-30)


@pytest.mark.usefixtures("two_threads")
def test_a_cap_bends_large_values_and_hardly_small_ones() -> None:
    values = 40 * torch.randn(301, 173)
    values[0, :4] = torch.tensor([0.0, 1e-3, 1e6, -1e6])
    together = softcapped(values, 30.0)
    alone = torch.cat([softcapped(values[i : i + 1], 30.0) for i in range(len(values))])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, 30.0 * torch.tanh(values / 30.0), rtol=0, atol=2e-5)
