"""Writes the keys and values of a step's tokens into the pool, with torch operations."""

import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch
from engine.kv_pool import KvPool


def write_rows(batch: AttentionBatch, kv_pool: KvPool) -> Tensor:
    """[2 * num_tokens * num_kv_heads] rows of `KvPool.token_rows`, keys then values."""
    layout = kv_pool.layout
    heads, size = layout.num_kv_heads, layout.block_size
    slots = torch.from_numpy(batch.slot_mapping)
    first = (slots // size) * (kv_pool.head_row_stride() * size) + slots % size
    per_head = torch.arange(2 * heads).view(2, 1, heads) * size
    return (first.view(1, -1, 1) + per_head).view(-1).to(kv_pool.device)


def write_new(kv_pool: KvPool, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
    """Store key and value [num_tokens, num_kv_heads, head_dim] at the rows of `write_rows`."""
    cached = kv_pool.token_rows(layer)
    new = torch.stack((key, value)).to(cached.dtype)
    cached.index_copy_(0, rows, new.view(-1, kv_pool.layout.head_dim))
