"""The parts of a decoder in the form the forward pass wants them.

Query, key and value are one matrix, gate and up another.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from engine.linear import Linear
from engine.models.mlp import Mlp
from engine.models.norm import RmsNorm
from engine.models.row_kernels import RowKernels
from engine.native.library import KernelLibrary
from engine.outside_exchange import OutsideExchange


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norms are over hidden_size, those of query and key over head_dim."""

    input_norm: RmsNorm
    # hidden_size -> (num_heads + 2 * num_kv_heads) * head_dim: queries, keys, values.
    qkv: Linear
    # num_heads * head_dim -> hidden_size
    attention_out: Linear
    mlp_norm: RmsNorm
    mlp: Mlp
    # None where the family has none.
    query_norm: RmsNorm | None = None
    key_norm: RmsNorm | None = None
    # Of what attention and MLP give, before it is added (Gemma).
    attention_out_norm: RmsNorm | None = None
    mlp_out_norm: RmsNorm | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole model, on one device in one dtype."""

    # [vocab_size, hidden_size]
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: RmsNorm
    # hidden_size -> vocab_size; with tied weights a copy of the embedding.
    lm_head: Linear
    # What the parts compute with; None: with torch.
    kernels: KernelLibrary | None = None
    # What rows go through between products; None: torch, or `kernels`.
    row_kernels: RowKernels | None = None
    # Whether heads stay in the model's dtype and are rotated by `row_kernels`.
    turns_heads: bool = False
    # Between the ranks that the model is cut among; None: it is whole.
    exchange: OutsideExchange | None = None

    @property
    def layer_linears(self) -> Iterator[Linear]:
        """Every matrix of the layers."""
        for layer in self.layers:
            yield layer.qkv
            yield layer.attention_out
            yield from layer.mlp.linears
