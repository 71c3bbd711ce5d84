"""The tensors of a decoder in the form the forward pass wants them.

Matrices are stored [inputs, outputs], contiguous: with this order more row counts agree bit for bit
(docs/decisions/batch-invariance.md). Query, key and value are one matrix, gate and up another.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Biases are None where the model has none."""

    # [hidden_size]
    input_norm: Tensor
    # [hidden_size, (num_heads + 2 * num_kv_heads) * head_dim], columns: queries, keys, values.
    qkv: Tensor
    qkv_bias: Tensor | None
    # [num_heads * head_dim, hidden_size]
    attention_out: Tensor
    attention_out_bias: Tensor | None
    # [hidden_size]
    mlp_norm: Tensor
    # [hidden_size, 2 * intermediate_size], columns: gate, up.
    gate_up: Tensor
    gate_up_bias: Tensor | None
    # [intermediate_size, hidden_size]
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole model, on one device in one dtype."""

    # [vocab_size, hidden_size]
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    # [hidden_size]
    final_norm: Tensor
    # [hidden_size, vocab_size]; with tied weights a transposed copy of the embedding.
    lm_head: Tensor
