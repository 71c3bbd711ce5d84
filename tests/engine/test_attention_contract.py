"""Every attention backend against the reference, on batches that hypothesis finds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.backend import AttentionBackend, AttentionBatch
from engine.attention.split_kv import SplitKvAttention
from engine.attention.testing import reference_attention
from engine.kv_pool import KvLayout, KvPool

BACKENDS: dict[str, Callable[[KvLayout, int], AttentionBackend]] = {
    "split_kv": lambda layout, num_heads: SplitKvAttention(layout, num_heads, torch.device("cpu")),
}
NUM_BLOCKS = 64


def make_batch(starts: list[int], counts: list[int], block_size: int, seed: int) -> AttentionBatch:
    """Sequences with scattered blocks, single tokens first."""
    pairs = sorted(zip(starts, counts, strict=True), key=lambda pair: pair[1] > 1)
    first = np.array([start for start, _ in pairs])
    lengths = np.array([count for _, count in pairs])
    width = -(-int((first + lengths).max()) // block_size)
    shuffled = np.random.default_rng(seed).permutation(NUM_BLOCKS)[: len(pairs) * width]
    tables = shuffled.reshape(len(pairs), width)
    for table, start, count in zip(tables, first, lengths, strict=True):
        table[-(-(start + count) // block_size) :] = table[0]
    positions = np.concatenate([np.arange(s, s + c) for s, c in zip(first, lengths, strict=True)])
    rows = np.repeat(np.arange(len(pairs)), lengths)
    slots = tables[rows, positions // block_size] * block_size + positions % block_size
    return AttentionBatch(first, lengths, tables, slots)


@pytest.mark.parametrize("make_backend", BACKENDS.values(), ids=BACKENDS.keys())
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size", "dtype"),
    [(4, 2, 16, 16, "float32"), (3, 1, 32, 8, "float32"), (2, 2, 64, 32, "bfloat16")],
)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_mixed_batch_matches_the_reference(
    make_backend: Callable[[KvLayout, int], AttentionBackend],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: str,
    data: st.DataObject,
) -> None:
    torch.set_num_threads(1)
    num_seqs = data.draw(st.integers(1, 4))
    starts = data.draw(st.lists(st.integers(0, 70), min_size=num_seqs, max_size=num_seqs))
    counts = data.draw(
        st.lists(st.sampled_from([1, 1, 2, 9, 33, 50]), min_size=num_seqs, max_size=num_seqs)
    )
    seed = data.draw(st.integers(0, 1000))
    batch = make_batch(starts, counts, block_size, seed)
    layout = KvLayout(2, num_kv_heads, head_dim, block_size, dtype)
    generator = torch.Generator().manual_seed(seed)
    pools = [KvPool(layout, NUM_BLOCKS), KvPool(layout, NUM_BLOCKS)]
    history = torch.randn(pools[0].tensor.shape, generator=generator)
    for pool in pools:
        pool.tensor.copy_(history)
    num_tokens = int(batch.num_queries.sum())
    query = torch.randn(num_tokens, num_heads, head_dim, generator=generator)
    key, value = torch.randn(2, num_tokens, num_kv_heads, head_dim, generator=generator)
    step = make_backend(layout, num_heads).begin(batch, pools[0])
    for layer in range(2):
        actual = step.attend(layer, query, key, value)
        expected = reference_attention(batch, pools[1], layer, query, key, value)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(pools[0].tensor, pools[1].tensor)


@pytest.mark.parametrize("make_backend", BACKENDS.values(), ids=BACKENDS.keys())
def test_a_long_context_needs_several_plans_and_stays_exact(
    make_backend: Callable[[KvLayout, int], AttentionBackend],
) -> None:
    torch.set_num_threads(1)
    layout = KvLayout(1, 2, 64, 32, "float32")
    batch = make_batch([900, 3], [40, 1], 32, seed=5)
    pools = [KvPool(layout, NUM_BLOCKS), KvPool(layout, NUM_BLOCKS)]
    history = torch.randn(pools[0].tensor.shape, generator=torch.Generator().manual_seed(1))
    for pool in pools:
        pool.tensor.copy_(history)
    query = torch.randn(41, 8, 64)
    key, value = torch.randn(2, 41, 2, 64)
    actual = make_backend(layout, 8).begin(batch, pools[0]).attend(0, query, key, value)
    expected = reference_attention(batch, pools[1], 0, query, key, value)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
