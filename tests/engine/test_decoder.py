from collections.abc import Iterator

import pytest
import torch

from engine.models.decoder import gated_silu
from engine.models.rope import rotate


@pytest.fixture
def two_threads() -> Iterator[None]:
    # Several threads cut a large tensor anywhere, also in the middle of a row.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_row_has_the_same_bits_alone_and_among_many(dtype: torch.dtype) -> None:
    rows = (4 * torch.randn(401, 2 * 171)).to(dtype)
    together = gated_silu(rows)
    alone = torch.cat([gated_silu(rows[i : i + 1]) for i in range(len(rows))])
    assert torch.equal(together, alone)
    gate, up = rows.float().chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(together.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("two_threads")
def test_a_rotated_token_has_the_same_bits_alone_and_among_many() -> None:
    heads = torch.randn(700, 5, 20)
    cos, sin = torch.randn(2, 700, 1, 20)
    together = rotate(heads, (cos, sin))
    alone = [rotate(heads[i : i + 1], (cos[i : i + 1], sin[i : i + 1])) for i in range(700)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normed_row_has_the_same_bits_alone_and_among_many(dtype: torch.dtype) -> None:
    rows, weight = torch.randn(500, 172).to(dtype), torch.randn(172).to(dtype)
    together = torch.nn.functional.rms_norm(rows, (172,), weight, 1e-6)
    alone = [torch.nn.functional.rms_norm(row[None], (172,), weight, 1e-6) for row in rows]
    assert torch.equal(together, torch.cat(alone))
