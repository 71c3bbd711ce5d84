"""Rotary position embeddings as a table, built once per model.

Source: RoFormer, Su et al. 2021; the scalings as published with Llama 2 Long and Llama 3.1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model_config import Llama3RopeScaling, ModelConfig


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rows of the rotation by position. Both [max_position_embeddings, head_dim], float32."""

    cos: Tensor
    # The first half is negated: the rotation is then x * cos + swapped_halves(x) * sin.
    signed_sin: Tensor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, signed_sin) [n, 1, head_dim] for positions [n]."""
        return (
            self.cos.index_select(0, positions).unsqueeze(1),
            self.signed_sin.index_select(0, positions).unsqueeze(1),
        )


def build_rope_table(config: ModelConfig, device: torch.device) -> RopeTable:
    """The table for every position of the model's context."""
    frequencies = _inverse_frequencies(config)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    cos, sin = angles.cos(), angles.sin()
    return RopeTable(
        cos=torch.cat((cos, cos), dim=1).to(device),
        signed_sin=torch.cat((-sin, sin), dim=1).to(device),
    )


def rotate(heads: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [n, num_heads, head_dim] float32. Separate products and sum: nothing is fused."""
    cos, signed_sin = rope
    rotated = heads * cos
    halves = heads.view(*heads.shape[:-1], 2, -1)
    swapped = halves.flip(-2).view(rotated.shape)
    return rotated.add_(swapped.mul_(signed_sin))


def _inverse_frequencies(config: ModelConfig) -> Tensor:
    """[head_dim / 2] radians per position, float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, Llama3RopeScaling):
        return _stretched(frequencies, scaling)
    return frequencies / scaling.factor


def _stretched(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Frequencies with few turns in the original context are slowed down, the others kept."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_fraction = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    slowed = frequencies / scaling.factor
    return (1 - kept_fraction) * slowed + kept_fraction * frequencies
