"""The forward pass of every family: one decoder, whose parts the configuration chooses.

Every operation gives a token the same bits whatever else is in the batch: products run at row
counts that agree (engine/row_tiles.py), and elementwise work avoids kernels whose vector body and
scalar tail differ (docs/decisions/batch-invariance.md).
"""

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.model_config import ModelConfig
from engine.models.decoder_weights import DecoderWeights, LayerWeights
from engine.models.gated import softcapped
from engine.models.rope import RopeTable, Rotation, build_rope_table, rotate
from engine.models.step_rows import StepRows
from engine.row_tiles import RowTiles, find_row_tiles


class Decoder:
    """Weights with their forward pass; stateless between calls."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        """Find the row counts at which this machine's products agree; takes well under a second.

        Set the number of torch threads before: with another number other counts may agree.
        Raises: NoCommonRowCount.
        """
        self.config = config
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        # The output matrix has tiles of its own: its many columns are tried at few row counts.
        self.row_tiles: RowTiles = find_row_tiles(
            linear.product_shape for linear in weights.layer_linears
        )
        self.head_tiles: RowTiles = find_row_tiles((weights.lm_head.product_shape,))
        ropes = tuple(dict.fromkeys(config.layer_ropes))
        self._rope_tables: tuple[RopeTable, ...] = tuple(
            build_rope_table(rope, config.max_position_embeddings, self.device) for rope in ropes
        )
        # Which of them each layer rotates with.
        self._rope_indices = tuple(ropes.index(rope) for rope in config.layer_ropes)
        # In the dtype of the model, which rounds it.
        scale = torch.tensor(config.hidden_size**0.5, dtype=self.dtype, device=self.device)
        self._embedding_scale = scale if config.is_gemma else None

    @property
    def arithmetic(self) -> str:
        """Names the order of summation of every product."""
        return f"{self.row_tiles.fingerprint}-{self.head_tiles.fingerprint}"

    def hidden(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """What `logits` makes scores of, [num_tokens or more, hidden_size] in the model's dtype.

        Shapes: token_ids, positions [num_tokens] int64. Rows behind num_tokens mean nothing.
        """
        step = StepRows.of(token_ids.shape[0], self.row_tiles)
        hidden = step.pad(self._embed(token_ids))
        rotations = [table.at(positions) for table in self._rope_tables]
        for index, layer in enumerate(self.weights.layers):
            rotation = rotations[self._rope_indices[index]]
            query, key, value = self._project(layer.input_norm(hidden), layer, step, rotation)
            attended = attention.attend(index, query, key, value)
            rows = step.pad(attended.view(step.num_rows, -1).to(self.dtype))
            out = layer.attention_out(rows, step.bounds)
            hidden = hidden + (layer.attention_out_norm(out) if layer.attention_out_norm else out)
            out = layer.mlp(layer.mlp_norm(hidden), step)
            hidden = hidden + (layer.mlp_out_norm(out) if layer.mlp_out_norm else out)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocab_size] float32 of hidden states [n, hidden_size]; n may be 0."""
        step = StepRows.of(hidden.shape[0], self.head_tiles)
        normed = step.pad(self.weights.final_norm(hidden))
        logits = self.weights.lm_head(normed, step.bounds)[: step.num_rows].float()
        cap = self.config.logit_softcap
        return logits if cap is None else softcapped(logits, cap)

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedded = self.weights.embedding.index_select(0, token_ids)
        return embedded if self._embedding_scale is None else embedded.mul_(self._embedding_scale)

    def _project(
        self, normed: Tensor, layer: LayerWeights, step: StepRows, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query and key, and value, float32 [num_tokens, heads, head_dim]."""
        num_heads, head_dim = self.config.num_heads, self.config.head_dim
        num_rotated = num_heads + self.config.num_kv_heads
        fused = layer.qkv(normed, step.bounds)[: step.num_rows].float()
        heads = fused.view(step.num_rows, -1, head_dim)
        turning, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if layer.query_norm and layer.key_norm:
            query, key = turning[:, :num_heads], turning[:, num_heads:]
            turning = torch.cat((layer.query_norm(query), layer.key_norm(key)), dim=1)
        rotated = rotate(turning, rotation)
        return rotated[:, :num_heads], rotated[:, num_heads:], value
