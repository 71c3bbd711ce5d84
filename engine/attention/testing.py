"""Attention spelt out, slow and obvious: the measure of every backend."""

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch
from engine.kv_pool import KvPool


def reference_attention(
    batch: AttentionBatch, kv_pool: KvPool, layer: int, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """What `StepAttention.attend` must compute, one token and one head at a time, in float64.

    Writes key and value into the pool; shapes as there.
    """
    size = kv_pool.layout.block_size
    cached = kv_pool.layer(layer)
    for row, slot in enumerate(batch.slot_mapping.tolist()):
        cached[slot // size, 0, :, slot % size] = key[row].to(cached.dtype)
        cached[slot // size, 1, :, slot % size] = value[row].to(cached.dtype)
    group = query.shape[1] // key.shape[1]
    out = torch.empty(query.shape, dtype=torch.float32)
    row = 0
    for sequence, (start, count) in enumerate(zip(batch.starts, batch.num_queries, strict=True)):
        for position in range(int(start), int(start + count)):
            seen = np.arange(position + 1)
            blocks = torch.from_numpy(batch.block_tables[sequence, seen // size])
            entries = cached[blocks, :, :, torch.from_numpy(seen % size)].double()
            for head in range(query.shape[1]):
                keys, values = entries[:, 0, head // group], entries[:, 1, head // group]
                scores = keys @ query[row, head].double() * query.shape[2] ** -0.5
                out[row, head] = (torch.softmax(scores, 0) @ values).float()
            row += 1
    return out
