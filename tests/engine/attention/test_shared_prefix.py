"""Ranges of KV that sequences share: against plain comparison, on tables that hypothesis finds."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.backend import AttentionBatch
from engine.attention.batch_over import batch_over
from engine.attention.shared_prefix import (
    SharedRange,
    SharedRanges,
    at_one_level,
    shared_ranges,
    those_that_save,
)

# Branches of a conversation as block ids: few, so that tables meet and part again.
TABLES = st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=7)


def batch_of(tables: Sequence[Sequence[int]], starts: Sequence[int], block: int) -> AttentionBatch:
    """Single query tokens at these positions."""
    return batch_over(np.array(tables, np.int64), [(start, 1) for start in starts], block)


def shared_tokens(batch: AttentionBatch, one: int, other: int, block: int, unit: int) -> int:
    """Token by token: what two sequences have in common, in whole units that both have behind."""
    tables, starts = batch.block_tables, batch.starts
    most = int(min(starts[one], starts[other]))
    common = 0
    while common < most and tables[one, common // block] == tables[other, common // block]:
        common += 1
    return common // unit * unit


def path(ranges: Sequence[SharedRange], sequence: int) -> list[SharedRange]:
    return [shared for shared in ranges if sequence in shared.members]


@pytest.mark.parametrize(("block", "unit"), [(4, 4), (4, 8), (3, 4), (5, 2), (8, 4)])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), tables=TABLES)
def test_the_ranges_of_two_sequences_are_what_they_have_in_common(
    block: int, unit: int, data: st.DataObject, tables: list[list[int]]
) -> None:
    starts = [data.draw(st.integers(0, 6 * block - 1)) for _ in tables]
    batch = batch_of(tables, starts, block)
    ranges = shared_ranges(batch, block, unit)
    for one, other in combinations(range(len(tables)), 2):
        both = [shared for shared in path(ranges, one) if other in shared.members]
        common = max((shared.last for shared in both), default=0)
        assert common == shared_tokens(batch, one, other, block, unit)
    for sequence in range(len(tables)):
        mine, end = path(ranges, sequence), 0
        for depth, shared in enumerate(mine):
            assert (shared.first, shared.depth) == (end, depth)
            assert shared.first < shared.last <= starts[sequence]
            parent = None if shared.parent is None else ranges[shared.parent]
            assert parent is (mine[depth - 1] if depth else None)
            end = shared.last
    assert [shared.depth for shared in ranges] == sorted(shared.depth for shared in ranges)
    assert all(len(shared.members) > 1 for shared in ranges)


def test_prompt_chunks_are_left_alone() -> None:
    tables = np.zeros((3, 8), np.int64)
    batch = batch_over(tables, [(16, 1), (20, 1), (16, 5)], 4)
    (found,) = shared_ranges(batch, 4, 8)
    assert (found.first, found.last, found.members.tolist()) == (0, 16, [0, 1])


def test_a_conversation_may_branch_as_often_as_it_has_units() -> None:
    # Sequence i leaves the others after i blocks; more of them than calls may be nested.
    size = 1100
    tables = np.tile(np.arange(size + 1), (size, 1))
    tables[np.triu_indices(size, 1)[::-1]] += size + 1
    starts = [size + 1] * size
    batch = AttentionBatch(
        np.array(starts), np.ones(size, np.int64), tables, np.zeros(size, np.int64)
    )
    ranges = shared_ranges(batch, 1, 1)
    assert [shared.depth for shared in ranges] == list(range(size - 2))


@settings(max_examples=40, deadline=None)
@given(tables=TABLES, more=st.lists(st.integers(0, 6), min_size=7, max_size=7))
def test_looking_again_finds_the_same_as_looking_anew(
    tables: list[list[int]], more: list[int]
) -> None:
    finder = SharedRanges(4, 8)
    for step in range(0, 12, 3):
        starts = [8 + step + later for later, _ in zip(more, tables, strict=False)]
        batch = batch_of([[*table, 3, 3] for table in tables], starts, 4)
        found, anew = finder.of(batch), shared_ranges(batch, 4, 8)
        assert [(r.first, r.last, r.parent) for r in found] == [
            (r.first, r.last, r.parent) for r in anew
        ]
        assert [r.members.tolist() for r in found] == [r.members.tolist() for r in anew]


def test_a_step_that_shares_as_the_last_one_did_plans_nothing_anew() -> None:
    finder = SharedRanges(4, 8)
    tables = [[0, 1, 2], [0, 1, 3]]
    first = finder.of(batch_of(tables, [9, 10], 4))
    assert len(first) == 1
    assert finder.of(batch_of(tables, [10, 11], 4)) is first
    assert finder.of(batch_of([[0, 2, 2], [0, 1, 3]], [10, 11], 4)) == ()


def test_sequences_that_share_nothing_are_forgotten_at_once() -> None:
    finder = SharedRanges(4, 8)
    tables = [[0, 1, 2], [0, 1, 3]]
    shared = finder.of(batch_of(tables, [9, 10], 4))
    assert finder.of(batch_of([[4, 1, 2], [0, 1, 3]], [9, 10], 4)) == ()
    again = finder.of(batch_of(tables, [9, 10], 4))
    assert [(r.last, r.members.tolist()) for r in again] == [(8, [0, 1])]
    assert [(r.last, r.members.tolist()) for r in shared] == [(8, [0, 1])]


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, min_tokens=st.integers(1, 60))
def test_what_saves_too_little_is_left_out_from_the_leaves_on(
    tables: list[list[int]], min_tokens: int
) -> None:
    ranges = shared_ranges(batch_of(tables, [24 - 1] * len(tables), 4), 4, 4)
    kept = those_that_save(ranges, min_tokens)
    for shared in kept:
        assert shared.parent is None or kept[shared.parent].last == shared.first
    parents = {shared.parent for shared in kept}
    for index, shared in enumerate(kept):
        saved = (len(shared.members) - 1) * (shared.last - shared.first)
        assert saved >= min_tokens or index in parents
    left_out = {(r.last, tuple(r.members)) for r in ranges} - {
        (r.last, tuple(r.members)) for r in kept
    }
    for shared in ranges:
        if (shared.last, tuple(shared.members)) in left_out:
            assert (len(shared.members) - 1) * (shared.last - shared.first) < min_tokens


def best_by_trying(ranges: Sequence[SharedRange], num_seqs: int) -> int:
    """Tokens saved by the best of all sets of ranges."""
    best = 0
    for size in range(len(ranges) + 1):
        for chosen in combinations(ranges, size):
            saved = -sum(shared.last for shared in chosen)
            for sequence in range(num_seqs):
                saved += max((r.last for r in chosen if sequence in r.members), default=0)
            best = max(best, saved)
    return best


# PAPERS 7.4.2: the exact programme saves what trying everything does.
@settings(max_examples=100, deadline=None)
@given(data=st.data(), tables=TABLES)
def test_one_level_saves_as_much_as_the_best_of_all_choices(
    data: st.DataObject, tables: list[list[int]]
) -> None:
    starts = [data.draw(st.integers(4, 23)) for _ in tables]
    ranges = shared_ranges(batch_of(tables, starts, 4), 4, 4)
    chosen = at_one_level(ranges)
    assert all((shared.first, shared.depth, shared.parent) == (0, 0, None) for shared in chosen)
    members = [member for shared in chosen for member in shared.members]
    assert len(members) == len(set(members))
    for shared in chosen:
        assert all(
            any(r.last == shared.last and member in r.members for r in ranges)
            for member in shared.members
        )
    saved = sum((len(shared.members) - 1) * shared.last for shared in chosen)
    assert saved == best_by_trying(ranges, len(tables))


def test_one_level_repeats_a_short_beginning_for_the_sake_of_a_long_one() -> None:
    # 2 blocks of all, then 6 more of three of them, and 1 of two others.
    rows = [[0, 1, *([2] * 6), 9]] * 3 + [[0, 1, 3, *([4 + i] * 6)] for i in range(2)]
    chosen = at_one_level(shared_ranges(batch_of(rows, [35] * 5, 4), 4, 4))
    assert [(shared.last, shared.members.tolist()) for shared in chosen] == [
        (36 - 4, [0, 1, 2]),
        (12, [3, 4]),
    ]
