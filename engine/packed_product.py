"""Products with a matrix that oneDNN has laid out for its own kernels, once, when it was loaded.

A plain product lays a bfloat16 matrix out anew at every call, which costs more than reading it. The
operators are those that torch.compile emits for a frozen linear layer; their names begin with an
underscore, so `can_pack` asks for them and everything works without. Measured:
docs/decisions/batch-invariance.md.
"""

import torch
from torch import Tensor

# The layout is chosen for this many rows and serves any number of them.
_ROWS_HINT = 32
_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this build of torch and this processor multiply packed matrices of `dtype`."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(weight: Tensor) -> Tensor:
    """An opaque tensor from [outputs, inputs]; `to_dense` gives the weight back."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    return packed


def multiply_packed(rows: Tensor, packed: Tensor) -> Tensor:
    """[n, outputs] of rows [n, inputs], which are contiguous."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
    return product
