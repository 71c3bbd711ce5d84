"""The elementwise functions of a decoder, spelt out with exp.

The tails of torch's silu and tanh kernels may round differently from their vector bodies, and with
several threads the tails lie where the number of rows puts them: see
docs/decisions/batch-invariance.md.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from engine.model_config import Activation
from engine.native.library import KernelLibrary
from engine.native.rows import apply_gate

# gelu(x) is about x * sigmoid(2u), u = sqrt(2 / pi) * (x + 0.044715 x^3); Hendrycks, Gimpel 2016.
_GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate, up], in the dtype given, computed in float32."""
    gate, up = _halves(gate_up)
    return _weighted(gate, torch.neg(gate), up).to(gate_up.dtype)


def gated_gelu_tanh(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up of rows [gate, up], gelu by its approximation with tanh, as gated_silu."""
    gate, up = _halves(gate_up)
    exponent = torch.mul(gate, gate).mul_(_GELU_CUBIC).add_(1.0).mul_(gate).mul_(-_GELU_SLOPE)
    return _weighted(gate, exponent, up).to(gate_up.dtype)


Gated = Callable[[Tensor], Tensor]

_BY_TORCH: Mapping[Activation, Gated] = {"silu": gated_silu, "gelu_tanh": gated_gelu_tanh}


def choose_gated(activation: Activation, kernels: KernelLibrary | None = None) -> Gated:
    """activation(gate) * up of rows [gate, up]; without `kernels` by torch, in other bits."""
    if kernels is None:
        return _BY_TORCH[activation]
    return partial(apply_gate, kernels, is_gelu=activation == "gelu_tanh")


def softcapped(values: Tensor, cap: float) -> Tensor:
    """cap * tanh(values / cap), in float32."""
    # tanh(x) = 1 - 2 / (exp(2x) + 1)
    denominator = torch.mul(values, 2.0 / cap).exp_().add_(1.0)
    return torch.reciprocal(denominator, out=denominator).mul_(-2.0 * cap).add_(cap)


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    size = gate_up.shape[1] // 2
    return gate_up[:, :size].float(), gate_up[:, size:]


def _weighted(gate: Tensor, exponent: Tensor, up: Tensor) -> Tensor:
    """gate / (1 + exp(exponent)) * up; the exponent is overwritten."""
    denominator = exponent.exp_().add_(1.0)
    return torch.div(gate, denominator, out=denominator).mul_(up)
