"""Writes the keys and values of a step's tokens into the pool, with torch operations."""

import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch
from engine.kv_dtype import round_to
from engine.kv_pool import KvPool
from engine.to_device import to_device


def write_rows(batch: AttentionBatch, kv_pool: KvPool) -> Tensor:
    """[2 * num_tokens * num_kv_heads] rows of `KvPool.token_rows`, keys then values."""
    layout = kv_pool.layout
    size = layout.block_size
    slots = torch.from_numpy(batch.slot_mapping)
    first = (slots // size) * (layout.block_rows * size) + slots % size
    kinds = torch.arange(2).view(2, 1, 1) * layout.heads_of_group
    heads = torch.from_numpy(layout.key_rows())
    rows = (first.view(1, -1, 1) + (kinds + heads) * size).view(-1)
    return to_device(rows.numpy(), kv_pool.device)


def write_new(kv_pool: KvPool, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
    """Store key and value [num_tokens, num_kv_heads, head_dim] at the rows of `write_rows`."""
    cached = kv_pool.token_rows(layer)
    new = round_to(torch.stack((key, value)), kv_pool.layout.torch_dtype)
    cached.index_copy_(0, rows, new.view(cached.dtype).view(-1, kv_pool.layout.head_dim))
