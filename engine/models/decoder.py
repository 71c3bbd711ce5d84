"""The forward pass of Llama and Qwen2: the same decoder, told apart by its biases.

Every operation gives a token the same bits whatever else is in the batch: products run at row
counts that agree (engine/row_tiles.py), and elementwise work avoids kernels whose vector body and
scalar tail differ (docs/decisions/batch-invariance.md).
"""

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.model_config import ModelConfig
from engine.models.decoder_weights import DecoderWeights, LayerWeights
from engine.models.rope import build_rope_table, rotate
from engine.row_tiles import ProductShape, RowTiles, find_row_tiles, matmul_in_tiles


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
        self.row_tiles: RowTiles = find_row_tiles(
            ProductShape(matrix.shape[0], matrix.shape[1], matrix.dtype, matrix.device)
            for matrix in _matrices(weights)
        )
        self._rope = build_rope_table(config, self.device)

    def forward(
        self, token_ids: Tensor, positions: Tensor, attention: StepAttention, score_rows: Tensor
    ) -> Tensor:
        """Logits [len(score_rows), vocab_size] float32, of the tokens at `score_rows`.

        Shapes: token_ids, positions [num_tokens] int64; score_rows [m] int64, m may be 0.
        """
        num_tokens = token_ids.shape[0]
        bounds = self.row_tiles.cut(num_tokens)
        hidden = _pad_rows(self.weights.embedding.index_select(0, token_ids), bounds[-1])
        rope = self._rope.at(positions)
        for index, layer in enumerate(self.weights.layers):
            normed = self._norm(hidden, layer.input_norm)
            query, key, value = self._project(normed, layer, bounds, rope)
            attended = attention.attend(index, query, key, value)
            rows = _pad_rows(attended.view(num_tokens, -1).to(self.dtype), bounds[-1])
            hidden = hidden + _linear(rows, layer.attention_out, layer.attention_out_bias, bounds)
            normed = self._norm(hidden, layer.mlp_norm)
            gated = gated_silu(_linear(normed, layer.gate_up, layer.gate_up_bias, bounds))
            hidden = hidden + _linear(gated, layer.down, layer.down_bias, bounds)
        return self._logits(hidden.index_select(0, score_rows))

    def _project(
        self, normed: Tensor, layer: LayerWeights, bounds: tuple[int, ...], rope: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query and key, and value, float32 [num_tokens, heads, head_dim]."""
        config = self.config
        num_tokens = rope[0].shape[0]
        fused = _linear(normed, layer.qkv, layer.qkv_bias, bounds)[:num_tokens].float()
        heads = fused.view(num_tokens, -1, config.head_dim)
        num_rotated = config.num_heads + config.num_kv_heads
        rotated = rotate(heads[:, :num_rotated], (rope[0], rope[1]))
        return (
            rotated[:, : config.num_heads],
            rotated[:, config.num_heads :],
            heads[:, num_rotated:],
        )

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.config.rms_norm_eps)

    def _logits(self, hidden: Tensor) -> Tensor:
        num_rows = hidden.shape[0]
        bounds = self.row_tiles.cut(num_rows)
        normed = _pad_rows(self._norm(hidden, self.weights.final_norm), bounds[-1])
        return matmul_in_tiles(normed, self.weights.lm_head, bounds)[:num_rows].float()


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate, up], in the dtype given, computed in float32.

    Spelt out, because the tail of torch's silu kernel rounds differently from its body, and with
    several threads the tails lie where the number of rows puts them.
    """
    size = gate_up.shape[1] // 2
    gate = gate_up[:, :size].float()
    denominator = torch.neg(gate).exp_().add_(1.0)
    gated = torch.div(gate, denominator, out=denominator).mul_(gate_up[:, size:])
    return gated.to(gate_up.dtype)


def _matrices(weights: DecoderWeights) -> list[Tensor]:
    """Every matrix that rows are multiplied with."""
    found = [weights.lm_head]
    for layer in weights.layers:
        found += [layer.qkv, layer.attention_out, layer.gate_up, layer.down]
    return found


def _linear(rows: Tensor, matrix: Tensor, bias: Tensor | None, bounds: tuple[int, ...]) -> Tensor:
    out = matmul_in_tiles(rows, matrix, bounds)
    return out if bias is None else out.add_(bias)


def _pad_rows(rows: Tensor, total: int) -> Tensor:
    """[total, width]: zero rows behind the given ones."""
    missing = total - rows.shape[0]
    return torch.cat((rows, rows.new_zeros(missing, rows.shape[1]))) if missing else rows
