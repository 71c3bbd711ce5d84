"""Slices of blocks on their way between workers of different tensor-parallel degrees."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.errors import LayoutMismatch
from kvtransfer.plan import merge_runs
from kvtransfer.protocol import BlockMoves
from kvtransfer.slices import (
    WHOLE,
    PoolSlices,
    SliceRoute,
    export_of_rank,
    is_first_rank,
    join_exports,
    pool_name,
    routes_to,
)
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

NUM_BLOCKS, SLICE_BYTES = 16, 64


def export_of(num_ranks: int, num_slices: int) -> KvExport:
    """Of a worker with so many ranks."""
    ranks = []
    for rank in range(num_ranks):
        slices = PoolSlices.of_rank(rank, num_ranks, num_slices)
        pool = KvExport(
            transport="tcp",
            address=f"port {rank}",
            num_blocks=NUM_BLOCKS * slices.num + 3,
            block_bytes=SLICE_BYTES,
            worker_id=WorkerId(pool_name("decode-0", rank)),
            incarnation=Incarnation(7),
            host="here",
            num_scratch_blocks=3,
        )
        ranks.append(export_of_rank(pool, slices))
    return join_exports(ranks)


def degrees() -> list[tuple[int, int, int]]:
    """All (sending ranks, receiving ranks, slices) up to 8 that fit."""
    every = itertools.product(range(1, 9), repeat=3)
    return [(m, n, total) for m, n, total in every if total % m == 0 and total % n == 0]


@pytest.mark.parametrize(("num_senders", "num_receivers", "num_slices"), degrees())
def test_every_slice_of_every_block_arrives_once_and_where_it_belongs(
    num_senders: int, num_receivers: int, num_slices: int
) -> None:
    export = export_of(num_receivers, num_slices)
    moves = BlockMoves("r/0", (5, 6, 1), (9, 10, 2), (4, 5, 6), first_index=2)
    source_of, target_of = dict(zip((9, 10, 2), (5, 6, 1), strict=True)), (9, 10, 2)
    arrived: Counter[tuple[int, int]] = Counter()
    for rank in range(num_senders):
        own = PoolSlices.of_rank(rank, num_senders, num_slices)
        for route in routes_to(export, own):
            cut = route.cut(moves)
            assert cut.first_index == 2 * len(route.shared)
            assert cut.num_blocks == 3 * len(route.shared) > 0
            theirs = route.theirs
            for src, dst, tag in zip(
                cut.src_block_ids, cut.dst_block_ids, cut.generations, strict=True
            ):
                block, place = divmod(dst, theirs.num)
                from_block, from_place = divmod(src, own.num)
                assert from_block == source_of[block]
                assert from_place + own.first == place + theirs.first, "the same heads"
                assert tag == moves.generations[target_of.index(block)]
                arrived[block, place + theirs.first] += 1
    assert arrived == Counter(itertools.product(target_of, range(num_slices)))


def test_whole_workers_of_a_cluster_without_slices_move_their_blocks_as_they_are() -> None:
    moves = BlockMoves("r/0", (0, 1), (2, 3), (1, 1))
    (route,) = routes_to(export_of(1, 1), WHOLE)
    assert route.cut(moves) is moves
    ids = (1, 2, 3)
    assert WHOLE.units_of(ids) is ids
    assert WHOLE.for_units(ids) is ids


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_between_equal_degrees_neighbouring_blocks_are_one_copy(num_ranks: int) -> None:
    export = export_of(num_ranks, 4)
    for rank in range(num_ranks):
        (route,) = routes_to(export, PoolSlices.of_rank(rank, num_ranks, 4))
        assert route.export.worker_id == pool_name("decode-0", rank)
        cut = route.cut(BlockMoves("r/0", (3, 4, 5), (8, 9, 10), (1, 1, 1)))
        per_block = 4 // num_ranks
        assert merge_runs(cut.src_block_ids, cut.dst_block_ids) == (
            (3 * per_block, 8 * per_block, 3 * per_block),
        )


@given(
    block_ids=st.lists(st.integers(0, 1000), max_size=20),
    num=st.integers(1, 8),
)
def test_the_units_of_a_block_lie_side_by_side_and_share_its_generation(
    block_ids: list[int], num: int
) -> None:
    slices = PoolSlices(0, num, num)
    expected = [block * num + place for block in block_ids for place in range(num)]
    assert np.asarray(slices.units_of(block_ids)).tolist() == expected
    tags = [block % 7 + 1 for block in block_ids]
    assert np.asarray(slices.for_units(tags)).tolist() == [tag for tag in tags for _ in range(num)]


def test_slices_that_ranks_or_heads_cannot_share_are_refused_with_what_to_set() -> None:
    with pytest.raises(LayoutMismatch, match="--kv-slices that is a multiple"):
        PoolSlices.of_rank(0, 2, 1)
    with pytest.raises(LayoutMismatch, match="8 KV heads cannot be cut into 16 slices"):
        PoolSlices.of_rank(0, 2, 16).require_heads(4)
    PoolSlices.of_rank(1, 2, 4).require_heads(4)


def test_a_worker_that_cuts_blocks_otherwise_is_refused() -> None:
    for theirs, ours in ((2, 4), (4, 2), (1, 2), (2, 1)):
        with pytest.raises(LayoutMismatch, match=f"into {theirs} slices, this worker into {ours}"):
            routes_to(export_of(1, theirs), PoolSlices(0, ours, ours))


def first_twice(export: KvExport) -> KvExport:
    return replace(export, other_ranks=(replace(export.other_ranks[0], first_slice=0),))


def none_of_the_last(export: KvExport) -> KvExport:
    return replace(export, other_ranks=())


def a_gap(export: KvExport) -> KvExport:
    return replace(export, other_ranks=(replace(export.other_ranks[0], first_slice=3),))


def other_blocks(export: KvExport) -> KvExport:
    return replace(export, other_ranks=(replace(export.other_ranks[0], block_bytes=128),))


def another_life(export: KvExport) -> KvExport:
    rank = replace(export.other_ranks[0], incarnation=Incarnation(8))
    return replace(export, other_ranks=(rank,))


def another_worker(export: KvExport) -> KvExport:
    return replace(
        export, other_ranks=(replace(export.other_ranks[0], worker_id=WorkerId("decode-1/1")),)
    )


def one_name(export: KvExport) -> KvExport:
    return replace(
        export, other_ranks=(replace(export.other_ranks[0], worker_id=export.worker_id),)
    )


@pytest.mark.parametrize(
    "broken",
    [first_twice, none_of_the_last, a_gap, other_blocks, another_life, another_worker, one_name],
)
def test_ranks_that_do_not_hold_every_slice_once_are_refused(broken: object) -> None:
    assert callable(broken)
    with pytest.raises(LayoutMismatch):
        routes_to(broken(export_of(2, 4)), PoolSlices(0, 4, 4))


def test_a_transport_sees_of_a_rank_only_its_pool() -> None:
    rank = export_of(2, 4).other_ranks[0]
    (way,) = rank.by_transport().values()
    assert (way.first_slice, way.num_slices, way.other_ranks) == (0, 1, ())
    assert (way.worker_id, way.num_blocks) == ("decode-0/1", NUM_BLOCKS * 2 + 3)
    assert rank.num_kv_blocks == NUM_BLOCKS


def test_routes_name_the_rank_alone() -> None:
    routes = routes_to(export_of(4, 4), PoolSlices.of_rank(0, 2, 4))
    assert [route.export.worker_id for route in routes] == ["decode-0", "decode-0/1"]
    assert all(isinstance(route, SliceRoute) and not route.export.other_ranks for route in routes)


def test_a_name_tells_whether_it_is_of_the_first_rank() -> None:
    assert is_first_rank(pool_name("decode-0", 0))
    assert is_first_rank(f"{pool_name('prefill-0', 0)}#17")
    assert not is_first_rank(f"{pool_name('prefill-0', 3)}#17")
