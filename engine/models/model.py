"""What the engine needs of a model, whoever computes it."""

from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.model_config import LayerAttention


class ModelDimensions(Protocol):
    """What pools, attention and sampling are built for."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def layer_attention(self) -> tuple[LayerAttention, ...]: ...


class Model(Protocol):
    """A decoder: weights with their forward pass, stateless between calls."""

    @property
    def config(self) -> ModelDimensions: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what lies between the layers."""
        ...

    @property
    def arithmetic(self) -> str:
        """Names the order of summation: equal names give equal bits for equal inputs."""
        ...

    @property
    def max_rows(self) -> int | None:
        """So many tokens at most may be computed at once; None: any number."""
        ...

    def hidden(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """What `logits` makes scores of, [num_tokens or more, hidden_size] in the model's dtype.

        Shapes: token_ids, positions [num_tokens] int64. Rows behind num_tokens mean nothing. The
        next call may overwrite the result.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocab_size] float32 of hidden states [n, hidden_size]; n may be 0."""
        ...
