"""From the rows of a layer's first product to rotated queries and keys, and values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.decoder_weights import LayerWeights
from engine.models.rope import RopeTable, rotate
from engine.models.row_kernels import TurnHeads
from engine.native.library import KernelLibrary
from engine.native.rows import HeadTurn, turn_heads


@dataclass(frozen=True, slots=True)
class HeadCounts:
    """How the outputs of the product are cut: queries, keys, then values."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class StepHeads:
    """The heads of one step's tokens, for all layers that rotate by one table."""

    def __init__(
        self,
        counts: HeadCounts,
        table: RopeTable,
        positions: Tensor,
        kernels: KernelLibrary | None = None,
    ) -> None:
        """`positions` [num_tokens] int64. Without `kernels` torch computes, in other bits."""
        self._counts = counts
        self._kernels = kernels
        if kernels is None:
            self._rotation = table.at(positions)
        else:
            self._turn = HeadTurn(
                counts.num_heads,
                counts.num_kv_heads,
                counts.head_dim,
                table.cos,
                table.sin,
                positions,
            )

    def of(self, fused: Tensor, layer: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, float32 [num_tokens, heads, head_dim] each; views of one tensor.

        `fused` [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] in the model's dtype.
        """
        num_heads = self._counts.num_heads
        num_rotated = num_heads + self._counts.num_kv_heads
        if self._kernels is not None:
            heads = turn_heads(self._kernels, fused, self._turn, layer.query_norm, layer.key_norm)
            return heads[:, :num_heads], heads[:, num_heads:num_rotated], heads[:, num_rotated:]
        heads = fused.float().view(fused.shape[0], -1, self._counts.head_dim)
        turning, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if layer.query_norm and layer.key_norm:
            query, key = turning[:, :num_heads], turning[:, num_heads:]
            turning = torch.cat((layer.query_norm(query), layer.key_norm(key)), dim=1)
        rotated = rotate(turning, self._rotation)
        return rotated[:, :num_heads], rotated[:, num_heads:], value


class TurnedHeads:
    """As `StepHeads`, rotated by row kernels: all in the model's dtype."""

    def __init__(self, counts: HeadCounts, turn: TurnHeads, positions: Tensor) -> None:
        """`positions` [num_tokens] int64."""
        self._counts = counts
        self._turn = turn
        self._positions = positions

    def of(self, fused: Tensor, layer: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        """See `StepHeads.of`; `fused` may be overwritten."""
        num_rows, num_heads = fused.shape[0], self._counts.num_heads
        num_rotated = num_heads + self._counts.num_kv_heads
        heads = fused.view(num_rows, -1, self._counts.head_dim)
        query, key = heads[:, :num_heads], heads[:, num_heads:num_rotated]
        if layer.query_norm and layer.key_norm:
            query, key = layer.query_norm(query), layer.key_norm(key)
        self._turn(self._positions, query.view(num_rows, -1), key.view(num_rows, -1))
        return query, key, heads[:, num_rotated:]
