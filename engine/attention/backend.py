"""The seam between a model and its attention kernels.

A step begins once (everything that depends on the batch only), then every layer attends: the new
keys and values go into the pool, and each query reads its sequence's blocks up to itself.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.kv_pool import KvPool

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The sequences of one step; their query tokens lie one after the other.

    Sequences with a single query token come first. A query sees every token up to its own.
    """

    # [num_seqs] position of the first query token of each sequence.
    starts: IntArray
    # [num_seqs] query tokens of each sequence, at least 1.
    num_queries: IntArray
    # [num_seqs, n] blocks in token order; unused entries repeat a block of the same sequence.
    block_tables: IntArray
    # [num_tokens] block_id * block_size + offset of every query token.
    slot_mapping: IntArray


class StepAttention(Protocol):
    """Attention of one step. Layers are attended once each, in order."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write key and value into the pool, then attend.

        Shapes: query [num_tokens, num_heads, head_dim]; key, value [num_tokens, num_kv_heads,
            head_dim], float32 or the model's dtype; result like query, float32.
        """
        ...


class AttentionBackend(Protocol):
    """Kernels for one machine. The caller promises that block tables cover every position."""

    @property
    def arithmetic(self) -> str:
        """Names the order of summation: equal names give equal bits for equal inputs."""
        ...

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> StepAttention: ...
