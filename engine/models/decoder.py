"""The forward pass of every family: one decoder, whose parts the configuration chooses.

Every operation gives a token the same bits whatever else is in the batch: products run at row
counts that agree (engine/row_tiles.py), and elementwise work avoids kernels whose vector body and
scalar tail differ (docs/decisions/batch-invariance.md).
"""

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.attention.native import NativeStep
from engine.linear import product_shapes
from engine.model_config import ModelConfig
from engine.models.compiled_layers import compile_layers
from engine.models.decoder_weights import DecoderWeights
from engine.models.gated import softcapped
from engine.models.heads import HeadCounts, StepHeads
from engine.models.rope import RopeTable, build_rope_table
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
        self.row_tiles: RowTiles = find_row_tiles(product_shapes(weights.layer_linears))
        self.head_tiles: RowTiles = find_row_tiles(product_shapes([weights.lm_head]))
        ropes = tuple(dict.fromkeys(config.layer_ropes))
        self._rope_tables: tuple[RopeTable, ...] = tuple(
            build_rope_table(rope, config.max_position_embeddings, self.device) for rope in ropes
        )
        # Which of them each layer rotates with.
        self._rope_indices = tuple(ropes.index(rope) for rope in config.layer_ropes)
        self._compiled = compile_layers(
            config, weights, [self._rope_tables[index] for index in self._rope_indices]
        )
        self._head_counts = HeadCounts(config.num_heads, config.num_kv_heads, config.head_dim)
        # In the dtype of the model, which rounds it.
        scale = torch.tensor(config.hidden_size**0.5, dtype=self.dtype, device=self.device)
        self._embedding_scale = scale if config.is_gemma else None

    @property
    def runs_layers_at_once(self) -> bool:
        """Whether a step with compiled attention is one call (engine/models/compiled_layers.py)."""
        return self._compiled is not None

    @property
    def arithmetic(self) -> str:
        """Names the order of summation of every product, and the kernels for everything else."""
        kernels = self.weights.kernels
        others = "torch" if kernels is None else kernels.digest
        return f"{self.row_tiles.fingerprint}-{self.head_tiles.fingerprint}-{others}"

    def hidden(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """What `logits` makes scores of, [num_tokens or more, hidden_size] in the model's dtype.

        Shapes: token_ids, positions [num_tokens] int64. Rows behind num_tokens mean nothing.
        """
        step = StepRows.of(token_ids.shape[0], self.row_tiles)
        hidden = step.pad(self._embed(token_ids))
        if self._compiled is not None and isinstance(attention, NativeStep):
            return self._compiled(hidden, positions, attention)
        heads = [
            StepHeads(self._head_counts, table, positions, self.weights.kernels)
            for table in self._rope_tables
        ]
        # What the part before gives is added to `hidden` together with the norm that follows.
        out: Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            norm = layer.input_norm
            normed = norm(hidden) if out is None else norm.of_sum(hidden, out)
            fused = layer.qkv(normed, step.bounds)[: step.num_rows]
            attended = attention.attend(index, *heads[self._rope_indices[index]].of(fused, layer))
            rows = step.pad(attended.view(step.num_rows, -1).to(self.dtype))
            out = layer.attention_out(rows, step.bounds)
            out = layer.attention_out_norm(out) if layer.attention_out_norm else out
            out = layer.mlp(layer.mlp_norm.of_sum(hidden, out), step)
            out = layer.mlp_out_norm(out) if layer.mlp_out_norm else out
        return hidden if out is None else hidden.add_(out)

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
