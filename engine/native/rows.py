"""What a decoder does to rows between its products, by compiled kernels (engine/native/rows.c).

Arithmetic is float32 whatever the rows hold, and a row does not depend on the others.
"""

import ctypes
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.native.calls import GateCall, NormCall, TurnCall
from engine.native.library import KernelLibrary


class HeadNorm(Protocol):
    """Normalisation of a head: weight [head_dim] float32."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def eps(self) -> float: ...


def normalise(
    kernels: KernelLibrary, rows: Tensor, weight: Tensor, eps: float, added: Tensor | None = None
) -> Tensor:
    """Rows [..., width] scaled to a root mean square of one, times the weight [width].

    With `added`, of the same shape, the sum is formed in `rows` first, which is contiguous then.
    """
    assert added is None or (rows.is_contiguous() and added.is_contiguous())
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    width = weight.shape[0]
    call = NormCall(
        rows.data_ptr(),
        None if added is None else added.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows.numel() // width,
        width,
        rows.dtype == torch.bfloat16,
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
        eps,
    )
    kernels.functions.tandem_normalise(ctypes.byref(call))
    return out


def apply_gate(kernels: KernelLibrary, gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    """activation(gate) * up of rows [gate, up], in the dtype given; silu, or gelu by its tanh."""
    gate_up = gate_up.contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    call = GateCall(
        gate_up.data_ptr(),
        out.data_ptr(),
        num_rows,
        width,
        gate_up.dtype == torch.bfloat16,
        is_gelu,
        torch.get_num_threads(),
    )
    kernels.functions.tandem_apply_gate(ctypes.byref(call))
    return out


@dataclass(frozen=True, slots=True)
class HeadTurn:
    """How the heads of a step's tokens are rotated."""

    num_queries: int
    num_keys: int
    head_dim: int
    # [positions, rotary_dim / 2] float32, contiguous.
    cos: Tensor
    sin: Tensor
    # [num_tokens] int64
    positions: Tensor


def turn_heads(
    kernels: KernelLibrary,
    rows: Tensor,
    turn: HeadTurn,
    query_norm: HeadNorm | None,
    key_norm: HeadNorm | None,
) -> Tensor:
    """[num_tokens, heads, head_dim] float32 of rows [num_tokens, heads * head_dim].

    Heads are queries, keys, then values. Queries and keys are normalised, if asked, and rotated.
    """
    rows = rows.contiguous()
    out = torch.empty(rows.shape[0], rows.shape[1] // turn.head_dim, turn.head_dim)
    call = TurnCall(
        rows.data_ptr(),
        out.data_ptr(),
        turn.cos.data_ptr(),
        turn.sin.data_ptr(),
        turn.positions.data_ptr(),
        query_norm.weight.data_ptr() if query_norm else None,
        key_norm.weight.data_ptr() if key_norm else None,
        out.shape[0],
        turn.num_queries,
        turn.num_keys,
        out.shape[1],
        turn.head_dim,
        2 * turn.cos.shape[1],
        rows.dtype == torch.bfloat16,
        torch.get_num_threads(),
        query_norm.eps if query_norm else 0.0,
        key_norm.eps if key_norm else 0.0,
    )
    kernels.functions.tandem_turn_heads(ctypes.byref(call))
    return out
