"""Which sequences of a step begin with the same KV blocks, so that these are read once for all.

Only single query tokens are looked at: in a prompt chunk a block is read once for many rows anyway.
Whoever computes by this plan keeps to places that a sequence alone decides on ("units" of tokens,
counted from its start), so that no order of summation depends on who shares; see
docs/decisions/shared-prefix-attention.md.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from engine.attention.backend import AttentionBatch, IntArray

# Blocks that are compared at once, at first.
_FIRST_LOOK_BLOCKS = 128


@dataclass(frozen=True, slots=True, eq=False)
class SharedRange:
    """Tokens [first, last) whose blocks are the same ones in all members; multiples of a unit.

    Equal to itself only.
    """

    first: int
    last: int
    # [at least 2] sequences of the batch, ascending; each sees the whole range.
    members: IntArray
    # 0 for a range that begins at the first token, else one more than that of the range before.
    depth: int
    # The range that ends where this one begins, as an index into the plan; None at the first token.
    # Its members are these and others.
    parent: int | None


class SharedRanges:
    """Finds them step by step; where nothing has changed since the last step, it only looks."""

    def __init__(self, block_size: int, unit_tokens: int) -> None:
        self._block_size = block_size
        self._unit_tokens = unit_tokens
        self._last: tuple[IntArray, IntArray] | None = None
        self._found: tuple[SharedRange, ...] = ()

    def of(self, batch: AttentionBatch) -> tuple[SharedRange, ...]:
        """See `shared_ranges`; the same object as before where the ranges are."""
        num_single = int(np.count_nonzero(batch.num_queries == 1))
        whole_units = batch.starts[:num_single] // self._unit_tokens
        if not _may_share(batch, whole_units):
            # Without a look at long tables, of which none is kept.
            self._last, self._found = None, ()
            return ()
        num_tokens = int(whole_units.max(initial=0)) * self._unit_tokens
        # All that the ranges depend on.
        blocks = batch.block_tables[:num_single, : -(-num_tokens // self._block_size)]
        last = self._last
        if last is None or not all(map(np.array_equal, last, (whole_units, blocks))):
            self._found = shared_ranges(batch, self._block_size, self._unit_tokens)
            self._last = (whole_units, blocks.copy())
        return self._found


def shared_ranges(
    batch: AttentionBatch, block_size: int, unit_tokens: int
) -> tuple[SharedRange, ...]:
    """All ranges that two or more single query tokens share, parents first: a forest.

    A block that is written in this step is in none of them.
    """
    num_single = int(np.count_nonzero(batch.num_queries == 1))
    whole_units = batch.starts[:num_single] // unit_tokens
    if not _may_share(batch, whole_units):
        return ()
    candidates = np.flatnonzero(whole_units)
    tables = _Tables(batch.block_tables, whole_units, block_size, unit_tokens)
    found: list[SharedRange] = []
    # Not by recursion: a conversation may branch as often as it has units.
    waiting = deque(tables.ranges_from(candidates, 0, depth=0, parent=None))
    while waiting:
        shared = waiting.popleft()
        found.append(shared)
        waiting.extend(
            tables.ranges_from(
                shared.members, shared.last // unit_tokens, shared.depth + 1, len(found) - 1
            )
        )
    return tuple(found)


def _may_share(batch: AttentionBatch, whole_units: IntArray) -> bool:
    """Whether two of those that have a unit behind them begin with the same block."""
    first_blocks = np.sort(batch.block_tables[: len(whole_units), 0][whole_units > 0])
    return bool((first_blocks[1:] == first_blocks[:-1]).any())


@dataclass(frozen=True, slots=True)
class _Tables:
    """The block tables of a batch, in units."""

    block_tables: IntArray
    # [single query tokens] units that lie before the query token.
    whole_units: IntArray
    block_size: int
    unit_tokens: int

    def ranges_from(
        self, sequences: IntArray, unit: int, depth: int, parent: int | None
    ) -> Iterator[SharedRange]:
        """What groups of these sequences share from this unit on; so far all are alike."""
        sequences = sequences[self.whole_units[sequences] > unit]
        if len(sequences) < 2:
            return
        for members in self._alike(sequences, unit):
            last = self._end_of_common(members, unit)
            assert last > unit, "the members have this unit in common"
            unit_tokens = self.unit_tokens
            yield SharedRange(unit * unit_tokens, last * unit_tokens, members, depth, parent)

    def _alike(self, sequences: IntArray, unit: int) -> Iterator[IntArray]:
        """Groups of two or more with the same blocks in this unit."""
        first = unit * self.unit_tokens // self.block_size
        blocks = np.ascontiguousarray(
            self.block_tables[sequences, first : self._blocks_to(unit + 1)]
        )
        # Rows as single values: compared byte by byte.
        rows = blocks.view(np.dtype((np.void, blocks.dtype.itemsize * blocks.shape[1])))[:, 0]
        _, groups, sizes = np.unique(rows, return_inverse=True, return_counts=True)
        by_group = sequences[np.argsort(groups, kind="stable")]
        for size, end in zip(sizes.tolist(), np.cumsum(sizes).tolist(), strict=True):
            if size > 1:
                yield by_group[end - size : end]

    def _end_of_common(self, members: IntArray, unit: int) -> int:
        """Units from the start that the members have in common; at least one more than `unit`."""
        most = int(self.whole_units[members].min())
        first, end = unit * self.unit_tokens // self.block_size, self._blocks_to(most)
        num_blocks = _FIRST_LOOK_BLOCKS
        while first < end:
            blocks = self.block_tables[members, first : min(end, first + num_blocks)]
            is_common = (blocks == blocks[0]).all(axis=0)
            if not is_common.all():
                return (first + int(is_common.argmin())) * self.block_size // self.unit_tokens
            first, num_blocks = first + num_blocks, 2 * num_blocks
        return most

    def _blocks_to(self, units: int) -> int:
        return -(-units * self.unit_tokens // self.block_size)


def those_that_save(ranges: Sequence[SharedRange], min_tokens: int) -> tuple[SharedRange, ...]:
    """Without the outermost ones that save reading fewer than this many tokens.

    A range that others go on from stays.
    """
    is_kept = [False] * len(ranges)
    for index in range(len(ranges) - 1, -1, -1):
        shared = ranges[index]
        saved_tokens = (len(shared.members) - 1) * (shared.last - shared.first)
        is_kept[index] |= saved_tokens >= min_tokens
        if is_kept[index] and shared.parent is not None:
            is_kept[shared.parent] = True
    places = list(accumulate(is_kept, initial=0))
    return tuple(
        replace(shared, parent=None if shared.parent is None else places[shared.parent])
        for shared, kept in zip(ranges, is_kept, strict=True)
        if kept
    )


def at_one_level(ranges: Sequence[SharedRange]) -> tuple[SharedRange, ...]:
    """Ranges from the first token on, each sequence in one at most, that save the most tokens.

    For kernels that join two parts only. Something of a beginning may then be read once for each of
    several continuations. Exact, where BatchLLM's enlargement of the first level is greedy.
    """
    saved = _saved_tokens(ranges)
    above: list[int | None] = []
    owners: dict[int, int] = {}
    for index, shared in enumerate(ranges):
        nearest = None if shared.parent is None else above[shared.parent]
        is_chosen = saved[index][index] - shared.last > saved[index][nearest]
        above.append(index if is_chosen else nearest)
        if is_chosen:
            # Children come later, and take what is theirs.
            owners.update(dict.fromkeys(shared.members.tolist(), index))
    members: dict[int, list[int]] = {}
    for sequence, owner in sorted(owners.items()):
        members.setdefault(owner, []).append(sequence)
    return tuple(
        SharedRange(0, ranges[owner].last, np.array(found, np.int64), 0, None)
        for owner, found in members.items()
    )


def _saved_tokens(ranges: Sequence[SharedRange]) -> list[dict[int | None, int]]:
    """For each range: tokens that its members need not read, at best, by the range they all have.

    That is the range itself, one above it or None; what reading that one costs is not taken off.
    """
    children: list[list[int]] = [[] for _ in ranges]
    for index, shared in enumerate(ranges):
        if shared.parent is not None:
            children[shared.parent].append(index)
    saved: list[dict[int | None, int]] = [{} for _ in ranges]
    for index in range(len(ranges) - 1, -1, -1):
        below = children[index]
        num_own = len(ranges[index].members) - sum(len(ranges[c].members) for c in below)
        held: int | None = index
        while True:
            tokens = 0 if held is None else ranges[held].last
            saved[index][held] = num_own * tokens + sum(
                max(saved[c][held], saved[c][c] - ranges[c].last) for c in below
            )
            if held is None:
                break
            held = ranges[held].parent
    return saved
