"""Shared beginnings as rounds of tiles: what the compiled kernel takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from engine.attention.backend import AttentionBatch, IntArray
from engine.attention.shared_prefix import SharedRange, SharedRanges, those_that_save
from engine.kv_pool import KvLayout

# As in the C source: keys between two joins of a row's softmax, and rows that share loads.
SPLIT_TOKENS = 256
MAX_ROWS = 32
# Tokens that need not be read, and sequences in a tile, below which the way through memory costs
# more than it saves (docs/decisions/shared-prefix-attention.md).
MIN_SAVED_TOKENS = 512
MIN_MEMBERS_OF_TILE = 4


@dataclass(frozen=True, slots=True)
class SharedTiles:
    """What the kernel computes for several sequences at once. Arrays are contiguous."""

    # [num_rounds + 1] first tile of each round.
    rounds: IntArray
    # [num_tiles, 4] first and last token, first member and number of members.
    tiles: IntArray
    # Sequences, tile by tile.
    members: IntArray
    # [num_seqs] tokens that tiles compute of each sequence.
    shared_tokens: IntArray
    # Tokens of the longest member, its query token included.
    longest_member: int
    # [num_seqs, num_heads, head_dim + 2] room for sums, highest scores and weights.
    states: npt.NDArray[np.float32]


class TilePlanner:
    """Plans step after step for one backend."""

    def __init__(self, layout: KvLayout, num_heads: int) -> None:
        self._num_kv_heads = layout.num_kv_heads
        self._state_shape = (num_heads, layout.head_dim + 2)
        self._max_members = MAX_ROWS // (num_heads // layout.num_kv_heads)
        self._ranges = SharedRanges(layout.block_size, SPLIT_TOKENS)
        self._planned_for: tuple[tuple[SharedRange, ...], int, int] | None = None
        self._tiles: SharedTiles | None = None

    def plan(self, batch: AttentionBatch, num_threads: int) -> SharedTiles | None:
        """None where too little is shared, or too few tiles would keep `num_threads` busy.

        The room for states is that of the last step, where it may be.
        """
        if self._max_members < MIN_MEMBERS_OF_TILE:
            return None
        ranges, num_seqs = self._ranges.of(batch), len(batch.starts)
        planned_for = (ranges, num_seqs, num_threads)
        if planned_for != self._planned_for:
            self._planned_for = planned_for
            self._tiles = self._new_tiles(ranges, num_seqs, num_threads)
        tiles = self._tiles
        if tiles is None:
            return None
        longest = int(batch.starts[tiles.shared_tokens > 0].max()) + 1
        return replace(tiles, longest_member=longest)

    def _new_tiles(
        self, ranges: Sequence[SharedRange], num_seqs: int, num_threads: int
    ) -> SharedTiles | None:
        ranges = those_that_save(ranges, MIN_SAVED_TOKENS)
        parts = _parts_of_ranges(ranges, self._num_kv_heads, num_threads)
        if not parts:
            return None
        cut = [
            (ranges[index], max(num_parts, -(-len(ranges[index].members) // self._max_members)))
            for index, num_parts in sorted(parts.items())
        ]
        return _shared_tiles(cut, np.empty((num_seqs, *self._state_shape), np.float32))


def _parts_of_ranges(
    ranges: Sequence[SharedRange], num_kv_heads: int, num_threads: int
) -> dict[int, int]:
    """Of each range, by its index: parts of its members, so many that no thread waits for another.

    Those are missing that such parts would leave no two members together, and what goes on from
    them: what sequences read apart keeps more threads busy.
    """
    parts: dict[int, int] = {}
    by_depth = groupby(range(len(ranges)), key=lambda index: ranges[index].depth)
    for _, of_round in by_depth:
        # Tokens of one head, the longest of the smallest parts last.
        work = {
            index: (shared.last - shared.first) * len(shared.members)
            for index in of_round
            if (shared := ranges[index]).parent is None or shared.parent in parts
        }
        waiting = sorted(work, key=lambda index: work[index] / (len(ranges[index].members) // 2))
        total = sum(work.values())
        while waiting:
            last = waiting[-1]
            most = len(ranges[last].members) // 2
            if work[last] * num_threads <= total * num_kv_heads * most:
                break
            total -= work[waiting.pop()]
        for index in waiting:
            parts[index] = -(-work[index] * num_threads // (total * num_kv_heads))
    return parts


def _shared_tiles(
    cut: Sequence[tuple[SharedRange, int]], states: npt.NDArray[np.float32]
) -> SharedTiles:
    """Of ranges with the number of parts of each."""
    rounds, tiles = _tiles(cut)
    sizes = [len(members) for _, members in tiles]
    ends = np.cumsum(sizes).tolist()
    shared_tokens = np.zeros(len(states), np.int64)
    for shared, _ in cut:
        shared_tokens[shared.members] = shared.last
    described = [
        (shared.first, shared.last, end - size, size)
        for (shared, _), end, size in zip(tiles, ends, sizes, strict=True)
    ]
    return SharedTiles(
        rounds=np.array(rounds, np.int64),
        tiles=np.array(described, np.int64),
        members=np.concatenate([members for _, members in tiles]),
        shared_tokens=shared_tokens,
        longest_member=0,
        states=states,
    )


def _tiles(
    cut: Sequence[tuple[SharedRange, int]],
) -> tuple[list[int], list[tuple[SharedRange, IntArray]]]:
    """Where rounds begin, and each tile's range and members; ranges lie by rising depth."""
    rounds: list[int] = [0]
    tiles: list[tuple[SharedRange, IntArray]] = []
    for _, of_round in groupby(cut, key=lambda of: of[0].depth):
        for shared, num_parts in of_round:
            # As equal as may be: a tile of one member alone gains nothing.
            tiles += [(shared, part) for part in np.array_split(shared.members, num_parts)]
        rounds.append(len(tiles))
    return rounds, tiles
