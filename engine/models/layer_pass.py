"""One forward pass through the layers, cut where attention lies between.

Attention depends on the sequences of a step; everything else depends on the number of rows alone,
and so may be recorded once for it (engine/models/captured_layers.py).
"""

from dataclasses import dataclass

from torch import Tensor

from engine.models.decoder_weights import DecoderWeights
from engine.models.heads import HeadCounts, StepHeads, TurnedHeads
from engine.models.rope import RopeTable
from engine.models.row_kernels import TurnHeads
from engine.models.step_rows import StepRows


@dataclass(frozen=True, slots=True)
class PassParts:
    """What every pass of a model computes with."""

    weights: DecoderWeights
    head_counts: HeadCounts
    rope_tables: tuple[RopeTable, ...]
    # Which of them each layer rotates with.
    rope_indices: tuple[int, ...]
    # One for each table where heads stay in the model's dtype; else none.
    turns: tuple[TurnHeads, ...] = ()


class LayerPass:
    """`heads_of` and `take` of each layer in turn, then `finish`."""

    def __init__(self, parts: PassParts, hidden: Tensor, positions: Tensor, step: StepRows) -> None:
        """`hidden` [step.bounds[-1], hidden_size], which is overwritten; `positions` [num_rows]."""
        self._parts = parts
        self._step = step
        self._hidden = hidden
        # What the part before gives is added to `hidden` together with the norm that follows.
        self._out: Tensor | None = None
        counts = parts.head_counts
        self._heads: list[StepHeads] | list[TurnedHeads]
        if parts.turns:
            self._heads = [TurnedHeads(counts, turn, positions) for turn in parts.turns]
        else:
            self._heads = [
                StepHeads(counts, table, positions, parts.weights.kernels)
                for table in parts.rope_tables
            ]

    def heads_of(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, [num_rows, heads, head_dim] each, of one layer.

        In float32; in the model's dtype where row kernels rotate them.
        """
        layer, step = self._parts.weights.layers[index], self._step
        norm, out = layer.input_norm, self._out
        normed = norm(self._hidden) if out is None else norm.of_sum(self._hidden, out)
        fused = layer.qkv(normed, step.bounds)[: step.num_rows]
        return self._heads[self._parts.rope_indices[index]].of(fused, layer)

    def take(self, index: int, attended: Tensor) -> None:
        """What attention of that layer gave, float32 [num_rows, num_heads, head_dim]."""
        layer, step = self._parts.weights.layers[index], self._step
        rows = step.pad(attended.view(step.num_rows, -1).to(self._hidden.dtype))
        out = layer.attention_out(rows, step.bounds)
        out = layer.attention_out_norm(out) if layer.attention_out_norm else out
        out = layer.mlp(layer.mlp_norm.of_sum(self._hidden, out), step)
        self._out = layer.mlp_out_norm(out) if layer.mlp_out_norm else out

    def finish(self) -> Tensor:
        """[step.bounds[-1], hidden_size] what the layers made of it."""
        return self._hidden if self._out is None else self._hidden.add_(self._out)
