"""Kernels that do at once what torch does to rows between two products in several.

The seam for GPUs, as `KernelLibrary` is for CPUs: without any, and for whatever they decline, torch
computes. What is declined depends on the model alone, so that equal workers decline alike.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from engine.model_config import Activation
from engine.models.gated import Gated
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable

# Positions [n] int64, and queries and keys [n, heads * head_dim], which it rotates in place.
TurnHeads = Callable[[Tensor, Tensor, Tensor], None]


class RowKernels(Protocol):
    """For rows in one dtype of 16 bits. A row's bits do not depend on the number of rows."""

    @property
    def name(self) -> str:
        """Equal names give equal bits for equal inputs."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    def norm(self, norm: RmsNorm) -> RmsNorm | None:
        """The same function of rows [n, width] or heads [n, heads, width]; None: declined.

        Its `of_sum` may overwrite what is added as well.
        """
        ...

    def gated(self, activation: Activation, width: int) -> Gated | None:
        """activation(gate) * up of rows [gate, up] of twice that width; None: declined."""
        ...

    def has_turn(self, head_dim: int, rotary_dim: int) -> bool:
        """Whether `turn` takes heads of these sizes."""
        ...

    def turn(self, table: RopeTable, head_dim: int) -> TurnHeads:
        """Rotates by a table of the model."""
        ...
