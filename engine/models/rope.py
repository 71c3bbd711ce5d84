"""Rotary position embeddings as tables, built once per model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.rope_frequencies import attention_factor, inverse_frequencies
from engine.rope_config import Rope

# What a layer rotates with: cosines and signed sines, [num_tokens, 1, rotary_dim].
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rows of the rotation by position. Both [max_position_embeddings, rotary_dim / 2], float32."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> Rotation:
        """(cos, signed_sin) [n, 1, rotary_dim] for positions [n]."""
        cos = self.cos.index_select(0, positions)
        sin = self.sin.index_select(0, positions)
        # The first half is negated: the rotation is then x * cos + swapped_halves(x) * sin.
        return (
            torch.cat((cos, cos), dim=1).unsqueeze(1),
            torch.cat((-sin, sin), dim=1).unsqueeze(1),
        )


def build_rope_table(rope: Rope, num_positions: int, device: torch.device) -> RopeTable:
    """The table for every position of the model's context."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope))
    factor = attention_factor(rope)
    return RopeTable((angles.cos() * factor).to(device), (angles.sin() * factor).to(device))


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate [n, num_heads, head_dim] float32; numbers behind rotary_dim stay as they are.

    Separate products and sum: nothing is fused.
    """
    cos, signed_sin = rotation
    rotary_dim = cos.shape[-1]
    if rotary_dim < heads.shape[-1]:
        turned = rotate(heads[..., :rotary_dim], rotation)
        return torch.cat((turned, heads[..., rotary_dim:]), dim=-1)
    rotated = heads * cos
    halves = heads.reshape(*heads.shape[:-1], 2, -1)
    swapped = halves.flip(-2).view(rotated.shape)
    return rotated.add_(swapped.mul_(signed_sin))
