"""Whether a network computes over paged KV what the transformers library computes by itself.

Two sequences of one batch, in pieces and over scattered blocks, with windows that they outgrow. A
family that mixes tokens otherwise than by attention, or masks what it does not tell, shows here.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch, StepAttention
from engine.attention.batch_over import batch_over
from engine.attention.split_kv import SplitKvAttention
from engine.kv_dtype import dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.models.model import ModelDimensions
from engine.other.network import Network

_BLOCK_SIZE = 16
_LENGTHS = (40, 23)
_WINDOW = 12
# Tokens of a sequence in one step, where so many may be computed at once.
_PIECE = 11
# Of the norm of the logits, less their mean: far more than rounding, far less than a wrong mask.
_MAX_ERROR = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


class _Hidden(Protocol):
    def __call__(
        self, token_ids: Tensor, positions: Tensor, attention: StepAttention
    ) -> Tensor: ...


@torch.inference_mode()
def relative_error(
    network: Network, dimensions: ModelDimensions, hidden: _Hidden, max_rows: int
) -> float:
    """How far logits are from the library's; `hidden` computes at most `max_rows` tokens."""
    generator = torch.Generator().manual_seed(0)
    num_ids = dimensions.vocab_size
    lengths = [min(length, dimensions.max_position_embeddings) for length in _LENGTHS]
    texts = [torch.randint(num_ids, (n,), generator=generator).to(network.device) for n in lengths]
    with network.windows_of(_WINDOW):
        expected = torch.cat([network.logits_by_library(text) for text in texts]).float()
        found: list[list[Tensor]] = [[] for _ in texts]
        for pieces, step in _steps(network, dimensions, max_rows, lengths):
            positions = [torch.arange(start, start + count) for _, start, count in pieces]
            token_ids = [
                texts[sequence][start : start + count] for sequence, start, count in pieces
            ]
            rows = hidden(torch.cat(token_ids), torch.cat(positions).to(network.device), step)
            for (sequence, _, count), _ in zip(pieces, positions, strict=True):
                found[sequence].append(rows[:count])
                rows = rows[count:]
        logits = network.logits(torch.cat([torch.cat(parts) for parts in found])).float()
    spread = torch.linalg.vector_norm(expected - expected.mean())
    return float(torch.linalg.vector_norm(logits - expected) / spread)


def is_as_good(error: float, dtype: torch.dtype) -> bool:
    """Whether rounding explains it."""
    return error <= _MAX_ERROR[dtype]


def _steps(
    network: Network, dimensions: ModelDimensions, max_rows: int, lengths: Sequence[int]
) -> Iterator[tuple[list[tuple[int, int, int]], StepAttention]]:
    """(sequence, start, tokens) of each piece of a step, single tokens first, and the step."""
    layout = KvLayout(
        dimensions.num_layers,
        dimensions.num_kv_heads,
        dimensions.head_dim,
        _BLOCK_SIZE,
        dtype_name(network.dtype),
    )
    width = -(-max(lengths) // _BLOCK_SIZE)
    pool = KvPool(layout, width * len(lengths), network.device)
    tables = np.arange(pool.num_blocks)[::-1].reshape(width, len(lengths)).T.astype(np.int64)
    windows = tuple(seen.attention for seen in network.layers_now())
    attention = SplitKvAttention(layout, dimensions.num_heads, windows, network.device)
    done = [0] * len(lengths)
    while any(have < length for have, length in zip(done, lengths, strict=True)):
        pieces: list[tuple[int, int, int]] = []
        room = max_rows
        for sequence, length in enumerate(lengths):
            count = min(_PIECE, max(1, max_rows // 2), length - done[sequence], room)
            if count > 0:
                pieces.append((sequence, done[sequence], count))
                done[sequence] += count
                room -= count
        pieces.sort(key=lambda piece: piece[2] > 1)
        yield pieces, attention.begin(_batch(tables, pieces), pool)


def _batch(tables: np.ndarray, pieces: list[tuple[int, int, int]]) -> AttentionBatch:
    sequences = [sequence for sequence, _, _ in pieces]
    return batch_over(tables[sequences], [piece[1:] for piece in pieces], _BLOCK_SIZE)
