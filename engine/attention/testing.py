"""Attention spelt out, slow and obvious: the measure of every backend. And batches to try it on."""

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch
from engine.attention.batch_over import batch_over
from engine.kv_pool import KvPool
from engine.model_config import LayerAttention


def scattered_batch(
    starts: list[int], counts: list[int], block_size: int, num_blocks: int, seed: int
) -> AttentionBatch:
    """Sequences over the blocks of one pool in random order; single tokens first."""
    pairs = sorted(zip(starts, counts, strict=True), key=lambda pair: pair[1] > 1)
    width = -(-max(start + count for start, count in pairs) // block_size)
    shuffled = np.random.default_rng(seed).permutation(num_blocks)[: len(pairs) * width]
    return batch_over(shuffled.reshape(len(pairs), width), pairs, block_size)


def reference_attention(
    batch: AttentionBatch,
    kv_pool: KvPool,
    layer: tuple[int, LayerAttention],
    tensors: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """What `StepAttention.attend` must compute, one token and one head at a time, in float64.

    Writes key and value into the pool. `tensors` are query, key and value, shaped as there.
    """
    (index, settings), (query, key, value) = layer, tensors
    size = kv_pool.layout.block_size
    cached = kv_pool.layer(index)
    for row, slot in enumerate(batch.slot_mapping.tolist()):
        cached[slot // size, 0, :, slot % size] = key[row].to(cached.dtype)
        cached[slot // size, 1, :, slot % size] = value[row].to(cached.dtype)
    group = query.shape[1] // key.shape[1]
    out = torch.empty(query.shape, dtype=torch.float32)
    row = 0
    for sequence, (start, count) in enumerate(zip(batch.starts, batch.num_queries, strict=True)):
        for position in range(int(start), int(start + count)):
            window = settings.sliding_window or position + 1
            seen = np.arange(max(0, position + 1 - window), position + 1)
            blocks = torch.from_numpy(batch.block_tables[sequence, seen // size])
            entries = cached[blocks, :, :, torch.from_numpy(seen % size)].double()
            for head in range(query.shape[1]):
                keys, values = entries[:, 0, head // group], entries[:, 1, head // group]
                scores = keys @ query[row, head].double() * settings.scale
                if settings.softcap is not None:
                    scores = settings.softcap * torch.tanh(scores / settings.softcap)
                out[row, head] = (torch.softmax(scores, 0) @ values).float()
            row += 1
    return out
