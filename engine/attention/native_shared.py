"""Shared beginnings as rounds of tiles: what the compiled kernel takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
        self._state_shape = (num_heads, layout.head_dim + 2)
        self._max_members = MAX_ROWS // (num_heads // layout.num_kv_heads)
        self._ranges = SharedRanges(layout.block_size, SPLIT_TOKENS)
        self._planned_for: tuple[tuple[SharedRange, ...], int] | None = None
        self._tiles: SharedTiles | None = None

    def plan(self, batch: AttentionBatch) -> SharedTiles | None:
        """None where too little is shared.

        The room for states is that of the last step, where it may be.
        """
        if self._max_members < MIN_MEMBERS_OF_TILE:
            return None
        ranges, num_seqs = self._ranges.of(batch), len(batch.starts)
        if (ranges, num_seqs) != self._planned_for:
            self._planned_for = (ranges, num_seqs)
            self._tiles = self._new_tiles(ranges, num_seqs)
        tiles = self._tiles
        if tiles is None:
            return None
        longest = int(batch.starts[tiles.shared_tokens > 0].max()) + 1
        return replace(tiles, longest_member=longest)

    def _new_tiles(self, ranges: Sequence[SharedRange], num_seqs: int) -> SharedTiles | None:
        ranges = those_that_save(ranges, MIN_SAVED_TOKENS)
        if not ranges:
            return None
        states = np.empty((num_seqs, *self._state_shape), np.float32)
        return _shared_tiles(ranges, self._max_members, states)


def _shared_tiles(
    ranges: Sequence[SharedRange], max_members: int, states: npt.NDArray[np.float32]
) -> SharedTiles:
    rounds, tiles = _tiles(ranges, max_members)
    sizes = [len(members) for _, members in tiles]
    ends = np.cumsum(sizes).tolist()
    shared_tokens = np.zeros(len(states), np.int64)
    for shared in ranges:
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
    ranges: Sequence[SharedRange], max_members: int
) -> tuple[list[int], list[tuple[SharedRange, IntArray]]]:
    """Where rounds begin, and each tile's range and members; ranges lie by rising depth."""
    rounds: list[int] = [0]
    tiles: list[tuple[SharedRange, IntArray]] = []
    for before, shared in pairwise((ranges[0], *ranges)):
        if shared.depth > before.depth:
            rounds.append(len(tiles))
        # As equal as may be: a tile of one row alone gains nothing.
        num_parts = -(-len(shared.members) // max_members)
        tiles += [(shared, part) for part in np.array_split(shared.members, num_parts)]
    return [*rounds, len(tiles)], tiles
