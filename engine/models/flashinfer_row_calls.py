"""Exactly the calls that are made of FlashInfer for rows, from 0.6.6 up to 0.8, as types.

As engine/attention/flashinfer_calls.py is for attention; compared with the package's sources by
tests/engine/test_flashinfer_row_signatures.py. All is given by position. Rows are float16 or
bfloat16 and at least one; a weight is of their dtype, which the package takes for granted.
"""

from typing import Protocol

from torch import Tensor


class Normalise(Protocol):
    """rmsnorm and gemma_rmsnorm: [n, width], of rmsnorm [n, heads, width] too; a new tensor."""

    def __call__(self, rows: Tensor, weight: Tensor, eps: float, /) -> Tensor: ...


class NormaliseSum(Protocol):
    """fused_add_rmsnorm and gemma_fused_add_rmsnorm, both [n, width], in place.

    `residual` becomes the sum, `rows` the sum's norm.
    """

    def __call__(self, rows: Tensor, residual: Tensor, weight: Tensor, eps: float, /) -> None: ...


class ApplyGate(Protocol):
    """silu_and_mul and gelu_tanh_and_mul: [n, width] of [n, 2 * width], gates first."""

    def __call__(self, rows: Tensor, /) -> Tensor: ...


class RotateInPlace(Protocol):
    """apply_rope_with_cos_sin_cache_inplace.

    `positions` [n], int64; `query` and `key` [n, heads * head_size], rows at any distance;
    `cos_sin_cache` [positions, rotary_dim] float32, cosines then sines.
    """

    def __call__(
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        head_size: int,
        cos_sin_cache: Tensor,
        is_neox: bool,
        /,
    ) -> None: ...


class FlashInferRowCalls(Protocol):
    """Of the module `flashinfer`. Gemma's add one to a weight, in float32."""

    @property
    def __version__(self) -> str: ...

    @property
    def rmsnorm(self) -> Normalise: ...

    @property
    def gemma_rmsnorm(self) -> Normalise: ...

    @property
    def fused_add_rmsnorm(self) -> NormaliseSum: ...

    @property
    def gemma_fused_add_rmsnorm(self) -> NormaliseSum: ...

    @property
    def silu_and_mul(self) -> ApplyGate: ...

    @property
    def gelu_tanh_and_mul(self) -> ApplyGate: ...

    @property
    def apply_rope_with_cos_sin_cache_inplace(self) -> RotateInPlace: ...
