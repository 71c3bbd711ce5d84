"""Every attention backend against the reference, on batches that hypothesis finds."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.backend import AttentionBackend
from engine.attention.batch_over import batch_over
from engine.attention.flashinfer import FlashInferAttention
from engine.attention.flashinfer_testing import FakeFlashInferKernels
from engine.attention.native import NativeAttention
from engine.attention.split_kv import SplitKvAttention
from engine.attention.testing import reference_attention, scattered_batch
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention
from engine.native.library import find_compiler, load_kernels

Layers = tuple[LayerAttention, ...]
CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16", "float16", "fp8_e4m3")


def make_native(layout: KvLayout, num_heads: int, layers: Layers) -> AttentionBackend:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    return NativeAttention(layout, num_heads, layers, load_kernels(compiler))


def make_split_kv(layout: KvLayout, num_heads: int, layers: Layers) -> AttentionBackend:
    return SplitKvAttention(layout, num_heads, layers, CPU)


def make_flashinfer(layout: KvLayout, num_heads: int, layers: Layers) -> AttentionBackend:
    query_dtype = torch.bfloat16 if layout.dtype == "fp8_e4m3" else layout.torch_dtype
    return FlashInferAttention(layout, num_heads, layers, FakeFlashInferKernels(), query_dtype)


@dataclass(frozen=True, slots=True)
class Backend:
    make: Callable[[KvLayout, int, Layers], AttentionBackend]
    dtypes: tuple[str, ...] = DTYPES[:2]
    tolerance: float = 1e-4
    # Every token has the same bits in any batch and any chunk.
    is_invariant: bool = True


BACKENDS = {
    "native": Backend(make_native),
    "split_kv": Backend(make_split_kv, DTYPES),
    "flashinfer": Backend(make_flashinfer, DTYPES[1:], 1e-2, is_invariant=False),
}
INVARIANT = {name: backend for name, backend in BACKENDS.items() if backend.is_invariant}
NUM_BLOCKS = 64
# What the layers of the models we know differ in.
PLAIN = LayerAttention(0.2)
LAYERS = st.builds(
    LayerAttention,
    scale=st.sampled_from([0.05, 0.25]),
    sliding_window=st.sampled_from([None, 1, 5, 16, 40, 100, 250]),
    softcap=st.sampled_from([None, 1.5, 50.0]),
)
STARTS, COUNTS = st.integers(0, 70), st.sampled_from([1, 1, 2, 9, 33, 50])


def random_rows(
    num_tokens: int, layout: KvLayout, num_heads: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, value; the query is exact in bfloat16, so that it may be rounded to it."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_tokens, num_heads, layout.head_dim, generator=generator)
    key, value = torch.randn(
        2, num_tokens, layout.num_kv_heads, layout.head_dim, generator=generator
    )
    return query.bfloat16().float(), key, value


def full_pools(layout: KvLayout, seed: int) -> tuple[KvPool, KvPool]:
    """Two pools with the same history."""
    pools = (KvPool(layout, NUM_BLOCKS), KvPool(layout, NUM_BLOCKS))
    history = torch.randn(pools[0].tensor.shape, generator=torch.Generator().manual_seed(seed + 1))
    for pool in pools:
        pool.tensor.copy_(history)
    return pools


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size", "dtype"),
    [
        (4, 2, 16, 16, "float32"),
        (3, 1, 36, 8, "float32"),
        (2, 2, 64, 32, "bfloat16"),
        (7, 1, 20, 5, "bfloat16"),
        (4, 2, 128, 16, "bfloat16"),
        (4, 2, 48, 16, "float16"),
        (6, 2, 64, 16, "fp8_e4m3"),
        (3, 1, 20, 5, "fp8_e4m3"),
    ],
)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_mixed_batch_matches_the_reference(
    backend: Backend,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: str,
    data: st.DataObject,
) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"not made for {dtype}")
    torch.set_num_threads(data.draw(st.sampled_from([1, 2, 3]), label="threads"))
    num_seqs = data.draw(st.integers(1, 4 if block_size > 5 else 2))
    starts = data.draw(st.lists(STARTS, min_size=num_seqs, max_size=num_seqs))
    counts = data.draw(st.lists(COUNTS, min_size=num_seqs, max_size=num_seqs))
    seed = data.draw(st.integers(0, 1000))
    batch = scattered_batch(starts, counts, block_size, NUM_BLOCKS, seed)
    layout = KvLayout(2, num_kv_heads, head_dim, block_size, dtype)
    pools = full_pools(layout, seed)
    rows = random_rows(int(batch.num_queries.sum()), layout, num_heads, seed)
    layers = (data.draw(LAYERS), data.draw(LAYERS))
    step = backend.make(layout, num_heads, layers).begin(batch, pools[0])
    for index, layer in enumerate(layers):
        actual = step.attend(index, *rows)
        expected = reference_attention(batch, pools[1], (index, layer), rows)
        torch.testing.assert_close(
            actual, expected, rtol=backend.tolerance, atol=backend.tolerance / 10
        )
    assert pools[0].as_bytes() == pools[1].as_bytes()


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
def test_where_in_a_block_the_heads_lie_changes_no_bit(
    backend: Backend, dtype: str, groups: int
) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"not made for {dtype}")
    layout = KvLayout(2, 4, 16, 8, dtype)
    parted = replace(layout, head_groups=groups)
    if backend is BACKENDS["flashinfer"] and groups != 4:
        with pytest.raises(ValueError, match="one stride between heads"):
            backend.make(parted, 8, (PLAIN, PLAIN))
        return
    pools = KvPool(layout, NUM_BLOCKS), KvPool(parted, NUM_BLOCKS)
    steps = [
        backend.make(pool.layout, 8, (PLAIN, LayerAttention(0.2, sliding_window=20)))
        for pool in pools
    ]
    # A prompt, the rest of it beside another, then one token of each.
    for seed, (starts, counts) in enumerate([([0], [30]), ([30, 0], [9, 20]), ([39, 20], [1, 1])]):
        batch = scattered_batch(starts, counts, layout.block_size, NUM_BLOCKS, seed=0)
        rows = random_rows(sum(counts), layout, 8, seed)
        begun = [step.begin(batch, pool) for step, pool in zip(steps, pools, strict=True)]
        for layer in range(2):
            whole, part = (step.attend(layer, *rows) for step in begun)
            assert torch.equal(whole, part)
            assert torch.isfinite(whole).all()
            for head in range(4):
                assert torch.equal(pools[0].head(layer, head), pools[1].head(layer, head))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
def test_a_long_context_stays_exact(backend: Backend, dtype: str) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"not made for {dtype}")
    torch.set_num_threads(1)
    layout = KvLayout(1, 2, 64, 32, dtype)
    batch = scattered_batch([900, 3], [40, 1], 32, NUM_BLOCKS, seed=5)
    pools = full_pools(layout, seed=5)
    rows = random_rows(41, layout, 8, seed=5)
    actual = backend.make(layout, 8, (PLAIN,)).begin(batch, pools[0]).attend(0, *rows)
    expected = reference_attention(batch, pools[1], (0, PLAIN), rows)
    torch.testing.assert_close(
        actual, expected, rtol=backend.tolerance, atol=backend.tolerance / 10
    )


@pytest.mark.parametrize("backend", INVARIANT.values(), ids=INVARIANT.keys())
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(
    layer=LAYERS,
    others=st.lists(st.tuples(STARTS, COUNTS), max_size=3),
    cut=st.integers(1, 299),
    seed=st.integers(0, 1000),
)
def test_a_token_has_the_same_bits_in_any_batch_and_any_chunk(
    backend: Backend,
    dtype: str,
    layer: LayerAttention,
    others: list[tuple[int, int]],
    cut: int,
    seed: int,
) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"not made for {dtype}")
    torch.set_num_threads(1)
    layout = KvLayout(1, 1, 32, 16, dtype)
    attention = backend.make(layout, 3, (layer,))
    mine = random_rows(300, layout, 3, seed)
    table = np.random.default_rng(seed).permutation(19)[None]
    whole = batch_over(table, [(0, 300)], 16)
    expected = attention.begin(whole, KvPool(layout, NUM_BLOCKS)).attend(0, *mine)
    pool = KvPool(layout, NUM_BLOCKS)
    for start, end in ((0, cut), (cut, 299), (299, 300)):
        if start == end:
            continue
        # Singles first, and mine last among its kind.
        pieces = sorted([*others, (start, end - start)], key=lambda piece: piece[1] > 1)
        place = max(i for i, piece in enumerate(pieces) if piece == (start, end - start))
        blocks = 19 + np.arange(len(pieces) * 8).reshape(-1, 8)
        tables = np.pad(blocks, ((0, 0), (0, 11)), mode="edge")
        tables[place] = table
        batch = batch_over(tables, pieces, 16)
        rows = random_rows(int(batch.num_queries.sum()), layout, 3, seed + 1)
        first = int(batch.num_queries[:place].sum())
        for all_rows, my_rows in zip(rows, mine, strict=True):
            all_rows[first : first + end - start] = my_rows[start:end]
        actual = attention.begin(batch, pool).attend(0, *rows)
        assert torch.equal(actual[first : first + end - start], expected[start:end])


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("backend", INVARIANT.values(), ids=INVARIANT.keys())
def test_what_lies_before_the_window_is_not_read(backend: Backend, dtype: str) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"not made for {dtype}")
    torch.set_num_threads(1)
    layout = KvLayout(1, 2, 64, 32, dtype)
    batch = scattered_batch([700, 400], [1, 20], 32, NUM_BLOCKS, seed=2)
    pool = full_pools(layout, seed=1)[0]
    # Whole splits before the window: a NaN there would reach the result through a product.
    for table, start in zip(batch.block_tables, batch.starts, strict=True):
        pool.tensor[torch.from_numpy(table[: (int(start) - 200) // 32])] = torch.nan
    layers = (LayerAttention(0.1, sliding_window=70),)
    rows = random_rows(21, layout, 8, seed=3)
    out = backend.make(layout, 8, layers).begin(batch, pool).attend(0, *rows)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
@pytest.mark.parametrize("num_broken", [256, 300, 512])
@pytest.mark.parametrize("start", [300, 700])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e4m3"])
def test_keys_that_are_not_numbers_give_no_number(
    backend: Backend, num_broken: int, start: int, dtype: str
) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"not made for {dtype}")
    torch.set_num_threads(1)
    layout = KvLayout(1, 2, 64, 32, dtype)
    batch = scattered_batch([start, start], [1, 1], 32, NUM_BLOCKS, seed=2)
    pool = full_pools(layout, seed=1)[0]
    # All keys that a kernel may look at first; those behind them are numbers.
    for position in range(min(num_broken, start)):
        block = int(batch.block_tables[1, position // 32])
        pool.layer(0)[block, 0, :, position % 32] = torch.nan
    rows = random_rows(2, layout, 8, seed=3)
    out = backend.make(layout, 8, (PLAIN,)).begin(batch, pool).attend(0, *rows)
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1]).all()


@pytest.mark.parametrize("num_queries", [1, 20])
@pytest.mark.parametrize("make", [make_split_kv, make_flashinfer])
def test_what_is_beyond_the_range_of_fp8_counts_as_its_end_and_infinity_as_no_number(
    make: Callable[[KvLayout, int, Layers], AttentionBackend], num_queries: int
) -> None:
    torch.set_num_threads(1)
    layout = KvLayout(1, 2, 64, 16, "fp8_e4m3")
    batch = scattered_batch([40, 30], [num_queries] * 2, 16, NUM_BLOCKS, seed=2)
    query, key, value = random_rows(2 * num_queries, layout, 8, seed=3)
    value[0, 0, 0], value[1, 0, 5], key[0, 1, 7] = 1e6, -460.0, -3e38
    limited = (query, key.clamp(-448, 448), value.clamp(-448, 448))
    outs = [
        make(layout, 8, (PLAIN,)).begin(batch, full_pools(layout, seed=1)[0]).attend(0, *rows)
        for rows in ((query, key, value), limited)
    ]
    assert torch.isfinite(outs[0]).all()
    assert torch.equal(*outs)
    key[-1, 0, 0] = torch.inf
    last = make(layout, 8, (PLAIN,)).begin(batch, full_pools(layout, seed=1)[0])
    out = last.attend(0, query, key, value)
    # Of the last token of the second sequence, which nobody else sees; and its heads of this key.
    assert torch.isnan(out[-1, :4]).all()
    assert torch.isfinite(out[:-1]).all()
