"""The compiled kernel reads a common beginning once: never another bit than without."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.backend import AttentionBatch
from engine.attention.batch_over import batch_over
from engine.attention.native import NativeAttention
from engine.attention.native_shared import MAX_ROWS, SPLIT_TOKENS, TilePlanner
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention
from engine.native.library import KernelLibrary, find_compiler, load_kernels

PLAIN = LayerAttention(0.2)
# Which branch a sequence takes at each of some places, one split apart; and tokens of its own.
SEQUENCES = st.lists(
    st.tuples(st.lists(st.sampled_from("aaab"), max_size=3), st.integers(0, 270)),
    min_size=3,
    max_size=6,
)


@pytest.fixture(scope="module")
def kernels() -> KernelLibrary:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    return load_kernels(compiler)


def branching_batch(
    sequences: Sequence[tuple[Sequence[str], int]], chunks: Sequence[int], block_size: int
) -> AttentionBatch:
    """A query token behind each path and its own tokens; then prompt chunks on the first path."""
    blocks_of_split = -(-SPLIT_TOKENS // block_size)
    known: dict[str, list[int]] = {}
    num_blocks = 0
    rows: list[list[int]] = []
    pieces: list[tuple[int, int]] = []
    wanted = [(path, own, 1) for path, own in sequences]
    wanted += [(sequences[0][0], 7, count) for count in chunks]
    for path, own, count in wanted:
        row: list[int] = []
        for end in range(1, len(path) + 1):
            name = "".join(path[:end])
            if name not in known:
                known[name] = list(range(num_blocks, num_blocks + blocks_of_split))
                num_blocks += blocks_of_split
            row += known[name]
        start = len(row) * block_size + own
        num_own = -(-(start + count) // block_size) - len(row)
        row += range(num_blocks, num_blocks + num_own)
        num_blocks += num_own
        rows.append(row)
        pieces.append((start, count))
    width = max(map(len, rows))
    tables = np.array([row + [row[0]] * (width - len(row)) for row in rows], np.int64)
    return batch_over(tables, pieces, block_size)


def both_ways(
    kernels: KernelLibrary,
    layout: KvLayout,
    num_heads: int,
    layers: tuple[LayerAttention, ...],
    batch: AttentionBatch,
    *,
    broken_block: int | None = None,
) -> tuple[list[torch.Tensor], int]:
    """What each layer gives, sharing and not, as bits; and the rounds that were shared."""
    generator = torch.Generator().manual_seed(3)
    pools = [KvPool(layout, int(batch.block_tables.max()) + 1) for _ in range(2)]
    history = torch.randn(pools[0].tensor.shape, generator=generator)
    if broken_block is not None:
        history[broken_block] = torch.nan
    num_tokens, heads = len(batch.slot_mapping), (layout.num_kv_heads, layout.head_dim)
    query = torch.randn(num_tokens, num_heads, layout.head_dim, generator=generator)
    key, value = torch.randn(2, num_tokens, *heads, generator=generator)
    outs: list[list[torch.Tensor]] = []
    rounds = 0
    for pool, is_sharing in zip(pools, (True, False), strict=True):
        pool.tensor.copy_(history)
        attention = NativeAttention(layout, num_heads, layers, kernels, is_sharing=is_sharing)
        step = attention.begin(batch, pool)
        rounds = max(rounds, step.description.num_rounds)
        outs.append([step.attend(layer, query, key, value) for layer in range(len(layers))])
    # NaN as well.
    return [torch.stack(out).view(torch.int32) for out in outs], rounds


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size", "dtype"),
    [
        (4, 2, 16, 16, "bfloat16"),
        (3, 1, 20, 16, "float32"),
        (2, 2, 36, 5, "bfloat16"),
        (8, 1, 64, 32, "float32"),
        (15, 3, 32, 24, "bfloat16"),
        (16, 1, 16, 16, "bfloat16"),
    ],
)
@settings(max_examples=7, deadline=None)
@given(data=st.data(), sequences=SEQUENCES)
def test_a_shared_beginning_changes_no_bit(
    kernels: KernelLibrary,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: str,
    data: st.DataObject,
    sequences: list[tuple[list[str], int]],
) -> None:
    torch.set_num_threads(data.draw(st.sampled_from([1, 1, 2]), label="threads"))
    chunks = data.draw(st.sampled_from([(), (9,), (40, 3)]))
    batch = branching_batch(sequences, chunks, block_size)
    layout = KvLayout(2, num_kv_heads, head_dim, block_size, dtype)
    layer = st.builds(
        LayerAttention,
        scale=st.sampled_from([0.05, 0.25]),
        sliding_window=st.sampled_from([None, 40, 600, 5000]),
        softcap=st.sampled_from([None, 50.0]),
    )
    layers = (data.draw(layer), data.draw(layer))
    (shared, alone), _ = both_ways(kernels, layout, num_heads, layers, batch)
    assert torch.equal(shared, alone)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_members", [2, 9, 40])
def test_many_members_go_on_from_one_round_to_the_next(
    kernels: KernelLibrary, num_members: int, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    # All share two splits, half of them one more.
    sequences = [("aaa" if i % 2 else "aab", 3 * i) for i in range(num_members)]
    batch = branching_batch(sequences, (), 16)
    layout = KvLayout(1, 2, 64, 16, "bfloat16")
    (shared, alone), rounds = both_ways(kernels, layout, 6, (PLAIN,), batch)
    assert rounds == (1 if num_members == 2 else 2)
    assert torch.equal(shared, alone)


def test_what_is_no_number_in_a_shared_beginning_is_none_in_its_members_only(
    kernels: KernelLibrary,
) -> None:
    torch.set_num_threads(1)
    batch = branching_batch([("a", 3), ("a", 30), ("a", 9), ("b", 5), ("b", 5), ("b", 1)], (), 16)
    layout = KvLayout(1, 2, 64, 16, "bfloat16")
    outs, rounds = both_ways(
        kernels, layout, 6, (PLAIN,), batch, broken_block=int(batch.block_tables[0, 3])
    )
    assert rounds == 1
    assert torch.equal(*outs)
    numbers = outs[0].view(torch.float32)[0]
    assert torch.isnan(numbers[:3]).all()
    assert torch.isfinite(numbers[3:]).all()


@pytest.mark.parametrize("window", [40, 600])
def test_what_a_window_has_left_behind_is_not_read_for_anybody(
    kernels: KernelLibrary, window: int
) -> None:
    torch.set_num_threads(1)
    # The last has gone further than the others, and out of sight of the first block.
    batch = branching_batch([("aa", 3), ("aa", 30), ("aa", 150)], (), 16)
    layout = KvLayout(1, 2, 64, 16, "bfloat16")
    layers = (LayerAttention(0.2, sliding_window=window),)
    outs, rounds = both_ways(kernels, layout, 6, layers, batch, broken_block=0)
    assert rounds == 1
    assert torch.equal(*outs)
    sees_numbers = torch.isfinite(outs[0].view(torch.float32)[0]).flatten(1).all(1)
    assert sees_numbers.tolist() == [window == 40, window == 40, True]


def test_tiles_hold_no_more_rows_than_the_kernel_has_room_for() -> None:
    planner = TilePlanner(KvLayout(1, 2, 64, 16, "bfloat16"), num_heads=6)
    batch = branching_batch([("aa", i) for i in range(25)], (9,), 16)
    tiles = planner.plan(batch, num_threads=1)
    assert tiles is not None
    assert tiles.tiles[:, 3].tolist() == [9, 8, 8]
    assert max(tiles.tiles[:, 3]) * 3 <= MAX_ROWS
    assert tiles.members.tolist() == list(range(25))
    assert tiles.shared_tokens.tolist() == [2 * SPLIT_TOKENS] * 25 + [0]
    assert tiles.longest_member == 2 * SPLIT_TOKENS + 25


def test_a_step_like_the_last_one_is_not_planned_anew_and_too_little_is_not_planned() -> None:
    planner = TilePlanner(KvLayout(1, 2, 64, 16, "bfloat16"), num_heads=6)
    first, second = (
        planner.plan(branching_batch([("aa", i), ("aa", 2 * i)], (), 16), 1) for i in (3, 4)
    )
    assert first is not None
    assert second is not None
    assert first.tiles is second.tiles
    assert (first.longest_member, second.longest_member) == (512 + 7, 512 + 9)
    assert planner.plan(branching_batch([("a", 3), ("a", 5)], (), 16), 1) is None
    # Few rows fit beside those of one token where many heads share a KV head.
    wide = TilePlanner(KvLayout(1, 1, 64, 16, "bfloat16"), num_heads=16)
    assert wide.plan(branching_batch([("aa", i) for i in range(9)], (), 16), 1) is None


@pytest.mark.parametrize(
    ("num_members", "num_threads", "sizes"),
    [(8, 1, [8]), (8, 2, [8]), (8, 3, [4, 4]), (8, 8, [2, 2, 2, 2]), (8, 9, None), (3, 3, None)],
)
def test_every_thread_gets_a_tile_and_a_head_or_nothing_is_shared(
    num_members: int, num_threads: int, sizes: list[int] | None
) -> None:
    planner = TilePlanner(KvLayout(1, 2, 64, 16, "bfloat16"), num_heads=8)
    batch = branching_batch([("aaa", 9 * i) for i in range(num_members)], (), 16)
    tiles = planner.plan(batch, num_threads)
    assert (None if tiles is None else tiles.tiles[:, 3].tolist()) == sizes


def test_the_number_of_threads_may_change_from_step_to_step() -> None:
    planner = TilePlanner(KvLayout(1, 2, 64, 16, "bfloat16"), num_heads=8)
    batch = branching_batch([("aa", i) for i in range(8)], (), 16)
    plans = [planner.plan(batch, num_threads) for num_threads in (1, 9, 3)]
    assert [None if plan is None else len(plan.tiles) for plan in plans] == [1, None, 2]


@settings(max_examples=60, deadline=None)
@given(sequences=SEQUENCES, num_threads=st.integers(1, 9))
def test_no_tile_keeps_the_other_threads_waiting(
    sequences: list[tuple[list[str], int]], num_threads: int
) -> None:
    num_kv_heads = 2
    planner = TilePlanner(KvLayout(1, num_kv_heads, 64, 16, "bfloat16"), num_heads=8)
    plan = planner.plan(branching_batch(sequences, (), 16), num_threads)
    if plan is None:
        return
    for first, last in pairwise(plan.rounds.tolist()):
        tiles = plan.tiles[first:last]
        assert tiles[:, 3].min() >= 2
        # Of one head; one member more than an equal part has where they do not divide.
        tokens = tiles[:, 1] - tiles[:, 0]
        share = num_kv_heads * int(tokens @ tiles[:, 3]) / num_threads
        assert (tokens * (tiles[:, 3] - 1) < share).all()


# A plan is of block ids at one time: tables are one array here, changed in place.
def test_blocks_and_sequences_that_change_places_are_found_where_they_are(
    kernels: KernelLibrary,
) -> None:
    torch.set_num_threads(1)
    layout = KvLayout(1, 2, 64, 16, "bfloat16")
    pool = KvPool(layout, 400)
    generator = torch.Generator().manual_seed(5)
    pool.tensor.copy_(torch.randn(pool.tensor.shape, generator=generator))
    query = torch.randn(5, 6, 64, generator=generator)
    new = torch.randn(2, 5, 2, 64, generator=generator)
    sharing = NativeAttention(layout, 6, (PLAIN,), kernels)
    tables = np.array([[*range(36), *range(40 + 10 * i, 44 + 10 * i)] for i in range(5)], np.int64)
    starts = np.array([600, 601, 602, 603, 604])
    changes: list[tuple[tuple[int, slice], Sequence[int]]] = [
        # Nothing; a block moved by one; all moved the same way; another sequence in a place.
        ((0, slice(0, 0)), []),
        ((2, slice(20, 21)), [300]),
        ((2, slice(20, 21)), [20]),
        ((4, slice(0, 36)), range(320, 356)),
        ((3, slice(0, 36)), range(320, 356)),
        ((3, slice(0, 16)), range(16)),
    ]
    rounds: list[int] = []
    for place, blocks in changes:
        tables[place] = blocks
        batch = batch_over(tables, [(int(start), 1) for start in starts], 16)
        batch = AttentionBatch(starts, batch.num_queries, tables, batch.slot_mapping)
        apart = NativeAttention(layout, 6, (PLAIN,), kernels, is_sharing=False)
        steps = [attention.begin(batch, pool) for attention in (sharing, apart)]
        rounds.append(steps[0].description.num_rounds)
        outs = [step.attend(0, query, *new) for step in steps]
        assert torch.equal(*outs)
        starts += 1
    assert rounds == [1, 2, 1, 1, 1, 2]
