from collections.abc import Iterator

import pytest
import torch

from engine.models.norm import RmsNorm
from engine.models.rope import rotate


@pytest.fixture
def two_threads() -> Iterator[None]:
    # Several threads cut a large tensor anywhere, also in the middle of a row.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_rotated_token_has_the_same_bits_alone_and_among_many() -> None:
    heads = torch.randn(700, 5, 28)
    # The last eight numbers of a head are not rotated.
    cos, sin = torch.randn(2, 700, 1, 20)
    together = rotate(heads, (cos, sin))
    alone = [rotate(heads[i : i + 1], (cos[i : i + 1], sin[i : i + 1])) for i in range(700)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[..., 20:], heads[..., 20:])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normed_row_has_the_same_bits_alone_and_among_many(dtype: torch.dtype) -> None:
    rows = torch.randn(500, 172).to(dtype)
    for weight_dtype in (dtype, torch.float32):
        norm = RmsNorm(torch.randn(172).to(weight_dtype), 1e-6)
        together = norm(rows)
        assert together.dtype == dtype
        assert torch.equal(together, torch.cat([norm(row[None]) for row in rows]))


@pytest.mark.usefixtures("two_threads")
def test_a_normed_head_has_the_same_bits_alone_and_among_many() -> None:
    heads = torch.randn(500, 9, 20)
    norm = RmsNorm(torch.randn(20), 1e-6)
    # A view into a row of several projections, as the decoder has them.
    assert torch.equal(norm(heads[:, 2:6]), torch.cat([norm(row[None, 2:6]) for row in heads]))
