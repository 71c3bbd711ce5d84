"""A fake of FlashInfer's kernels for rows: their documented contract, in plain torch."""

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16)


class FakeFlashInferRowCalls:
    """In place of the package, on any device; refuses what the kernels would misread."""

    __version__ = "fake"

    def __init__(self) -> None:
        # By name of the call.
        self.num_calls: dict[str, int] = {}

    def rmsnorm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        self._count("rmsnorm")
        assert rows.dim() in (2, 3)
        return _normalised(rows, weight, eps, 0.0).to(rows.dtype)

    def gemma_rmsnorm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        self._count("gemma_rmsnorm")
        assert rows.dim() == 2
        return _normalised(rows, weight, eps, 1.0).to(rows.dtype)

    def fused_add_rmsnorm(self, rows: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
        self._count("fused_add_rmsnorm")
        _normalise_sum(rows, residual, weight, eps, 0.0)

    def gemma_fused_add_rmsnorm(
        self, rows: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> None:
        self._count("gemma_fused_add_rmsnorm")
        _normalise_sum(rows, residual, weight, eps, 1.0)

    def silu_and_mul(self, rows: Tensor) -> Tensor:
        self._count("silu_and_mul")
        gate, up = _halves(rows)
        return (F.silu(gate) * up).to(rows.dtype)

    def gelu_tanh_and_mul(self, rows: Tensor) -> Tensor:
        self._count("gelu_tanh_and_mul")
        gate, up = _halves(rows)
        return (F.gelu(gate, approximate="tanh") * up).to(rows.dtype)

    def apply_rope_with_cos_sin_cache_inplace(
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        head_size: int,
        cos_sin_cache: Tensor,
        is_neox: bool,
    ) -> None:
        self._count("apply_rope")
        assert is_neox
        assert cos_sin_cache.dtype == torch.float32
        assert cos_sin_cache.is_contiguous()
        assert positions.is_contiguous()
        cos, sin = cos_sin_cache.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
        half = cos.shape[-1]
        for each in (query, key):
            _require_rows(each)
            heads = each.view(each.shape[0], -1, head_size)
            first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
            heads[..., :half].copy_(first * cos - second * sin)
            heads[..., half : 2 * half].copy_(second * cos + first * sin)

    def _count(self, name: str) -> None:
        self.num_calls[name] = self.num_calls.get(name, 0) + 1


def _require_rows(rows: Tensor) -> None:
    assert rows.dtype in _DTYPES
    assert rows.shape[0], "a launch of no blocks is an error"
    assert rows.stride(-1) == 1
    # What a thread moves at once is 16 bytes.
    assert rows.shape[-1] % 8 == 0
    assert rows.stride(0) % 8 == 0
    assert rows.data_ptr() % 16 == 0


def _normalised(rows: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    _require_rows(rows)
    assert weight.dtype == rows.dtype
    assert weight.shape == rows.shape[-1:]
    return _scaled(rows.float(), weight, eps, offset)


def _scaled(numbers: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    mean = numbers.square().mean(-1, keepdim=True)
    return numbers * torch.rsqrt(mean + eps) * (weight.float() + offset)


def _normalise_sum(
    rows: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float
) -> None:
    for each in (rows, residual):
        _require_rows(each)
        assert each.dim() == 2
        assert weight.dtype == each.dtype
    assert rows.data_ptr() != residual.data_ptr()
    total = rows.float() + residual.float()
    residual.copy_(total)
    rows.copy_(_scaled(total, weight, eps, offset))


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    _require_rows(rows)
    assert rows.is_contiguous()
    assert rows.shape[-1] % 16 == 0
    gate, up = rows.float().chunk(2, dim=-1)
    return gate, up
