"""`RowKernels` by FlashInfer, on CUDA in float16 and bfloat16.

Written from FlashInfer 0.6.6 and tested against a fake of its contract; nothing here has been
measured on a GPU. A row's bits do not depend on the others, by its sources: rmsnorm and
fused_add_rmsnorm give each row a block of threads whose number follows from the width (heads: a
warp), silu_and_mul and gelu_tanh_and_mul too, and the rotation computes each number by itself. The
norms of later versions may be CuTe's (docs/decisions/row-kernels.md). Nothing waits for the host.

What differs from torch's, beside the order of sums: `of_sum` normalises the sum before it is
rounded; normalised heads are rounded to the model's dtype before they are rotated; tanh is the
device's approximation, within 2^-10.9.
"""

import torch
from torch import Tensor

from engine.model_config import Activation
from engine.models.flashinfer_row_calls import FlashInferRowCalls
from engine.models.gated import Gated
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable
from engine.models.row_kernels import TurnHeads

ROW_DTYPES = (torch.bfloat16, torch.float16)
# Numbers that a kernel moves at once, 16 bytes; it reads behind the row where they do not fit.
_VECTOR = 8
_HEAD_DIMS = (64, 128, 256)


class FlashInferRows:
    """The kernels of one package for rows of one dtype."""

    def __init__(self, calls: FlashInferRowCalls, dtype: torch.dtype, build: str = "") -> None:
        """`build` tells kernels of one version apart, where it has several for a device."""
        assert dtype in ROW_DTYPES
        self._calls = calls
        self.dtype = dtype
        self.name = f"flashinfer-rows-{calls.__version__}{build and f'-{build}'}"

    def norm(self, norm: RmsNorm) -> RmsNorm | None:
        """See `RowKernels.norm`; declined where the weight is not exact in the rows' dtype."""
        if norm.width % _VECTOR:
            return None
        plain = norm.weight.to(self.dtype)
        if torch.equal(plain.to(norm.weight.dtype), norm.weight):
            return _Norm(norm, plain, self._calls)
        # Gemma's files hold the weight less one.
        less_one = (norm.weight - 1.0).to(self.dtype)
        if torch.equal(less_one.to(norm.weight.dtype) + 1.0, norm.weight):
            return _OffsetNorm(norm, less_one, self._calls)
        return None

    def gated(self, activation: Activation, width: int) -> Gated | None:
        """See `RowKernels.gated`."""
        if width % _VECTOR:
            return None
        calls = self._calls
        apply = calls.silu_and_mul if activation == "silu" else calls.gelu_tanh_and_mul

        def gated(gate_up: Tensor) -> Tensor:
            if not gate_up.shape[0]:
                return gate_up.new_empty(0, width)
            return apply(gate_up.contiguous())

        return gated

    def has_turn(self, head_dim: int, rotary_dim: int) -> bool:
        """See `RowKernels.has_turn`: a thread's numbers lie in one half of what is rotated."""
        return head_dim in _HEAD_DIMS and rotary_dim % (2 * _VECTOR) == 0

    def turn(self, table: RopeTable, head_dim: int) -> TurnHeads:
        """See `RowKernels.turn`."""
        cache = torch.cat((table.cos, table.sin), dim=1)
        apply = self._calls.apply_rope_with_cos_sin_cache_inplace

        def turn(positions: Tensor, query: Tensor, key: Tensor) -> None:
            if positions.shape[0]:
                # The halves of a head turn against each other, not neighbours.
                apply(positions, query, key, head_dim, cache, True)

        return turn


class _Norm(RmsNorm):
    """With the weight as it is."""

    def __init__(self, norm: RmsNorm, stored: Tensor, calls: FlashInferRowCalls) -> None:
        super().__init__(norm.weight, norm.eps)
        self._stored = stored
        self._normalise, self._normalise_sum = calls.rmsnorm, calls.fused_add_rmsnorm

    def __call__(self, rows: Tensor) -> Tensor:
        # A launch of no blocks is an error.
        if not rows.shape[0]:
            return torch.empty_like(rows)
        return self._normalise(rows, self._stored, self.eps)

    def of_sum(self, rows: Tensor, added: Tensor) -> Tensor:
        """See `RmsNorm.of_sum`; the result lies where `added` was."""
        if rows.shape[0]:
            self._normalise_sum(added, rows, self._stored, self.eps)
        return added


class _OffsetNorm(_Norm):
    """With the weight less one, in the model's dtype: one that has it exactly."""

    def __init__(self, norm: RmsNorm, less_one: Tensor, calls: FlashInferRowCalls) -> None:
        super().__init__(norm, less_one, calls)
        self._normalise, self._normalise_sum = calls.gemma_rmsnorm, calls.gemma_fused_add_rmsnorm

    def __call__(self, rows: Tensor) -> Tensor:
        # It knows no heads.
        return super().__call__(rows.reshape(-1, self.width)).view(rows.shape)
