"""A model and its attention on torch's meta device, where tensors have shapes and no numbers.

Whatever would wait for the device to look at a number fails there, so a test sees who does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch, StepAttention
from engine.attention.kv_write import write_new, write_rows
from engine.kv_pool import KvPool
from engine.model_config import LayerAttention

META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class NumberlessDimensions:
    """Of a model with a single layer; see `ModelDimensions`."""

    vocab_size: int = 100
    max_position_embeddings: int = 1024
    num_layers: int = 1
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 8
    layer_attention: tuple[LayerAttention, ...] = (LayerAttention(1.0),)


class NumberlessModel:
    """An implementation of `Model`."""

    device = META
    dtype = torch.float32
    arithmetic = "none"

    def __init__(self, max_rows: int | None = None) -> None:
        """`max_rows`: tokens that it computes at once; None: any number."""
        self.config = NumberlessDimensions()
        self.max_rows = max_rows
        width = self.config.num_heads * self.config.head_dim
        self._embedding = torch.empty(self.config.vocab_size, width, device=META)

    def hidden(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """See `Model.hidden`."""
        hidden = self._embedding.index_select(0, token_ids) * positions.unsqueeze(1)
        query = hidden.view(-1, self.config.num_heads, self.config.head_dim)
        key = query[:, : self.config.num_kv_heads]
        return attention.attend(0, query, key, key).flatten(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return hidden @ self._embedding.T


class NumberlessAttention:
    """An implementation of `AttentionBackend` that writes KV and reads none."""

    arithmetic = "none"

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> "NumberlessStep":
        """See `AttentionBackend.begin`."""
        return NumberlessStep(write_rows(batch, kv_pool), kv_pool)


class NumberlessStep:
    """See `StepAttention`."""

    def __init__(self, rows: Tensor, kv_pool: KvPool) -> None:
        self._rows, self._pool = rows, kv_pool

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `StepAttention.attend`."""
        write_new(self._pool, layer, self._rows, key, value)
        return query * 2.0
