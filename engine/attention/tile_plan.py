"""Which query rows meet which KV split: the index tensors of one attention step.

A tile is a few query tokens of one sequence times the query heads that share a KV head. An item is
a tile against one split. Built once per step with numpy, used by every layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch, IntArray
from engine.kv_pool import KvLayout
from engine.to_device import to_device

# Numbers that the items of one plan may copy and produce per layer; bounds the working memory.
MAX_PLAN_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class TileGeometry:
    """The fixed shapes of tiles and splits on one machine."""

    layout: KvLayout
    # Query heads per KV head.
    group_size: int
    blocks_per_split: int
    # Rows of a tile that holds one token, and of a tile of a prompt chunk.
    single_rows: int
    chunk_rows: int
    device: torch.device

    @property
    def split_tokens(self) -> int:
        return self.blocks_per_split * self.layout.block_size

    @property
    def chunk_queries(self) -> int:
        """Query tokens in a tile of a prompt chunk."""
        return max(1, self.chunk_rows // self.group_size)

    def item_elements(self, rows: int) -> int:
        """Numbers that one item copies and produces."""
        dim, split = self.layout.head_dim, self.split_tokens
        return self.layout.num_kv_heads * (2 * split * dim + rows * (dim + split))


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Tiles in token order; padding repeats the last token of the tile."""

    # [n] row of the block table.
    sequences: IntArray
    # [n, queries] index of the query token, and its position in the sequence.
    tokens: IntArray
    positions: IntArray
    # [n] tokens that are not padding.
    counts: IntArray
    # [n] the first split that the first token of the tile reads, and how many follow up to the
    # last one that its last token reads.
    first_splits: IntArray
    num_splits: IntArray

    def part(self, start: int, end: int) -> "_Tiles":
        cut = slice(start, end)
        return _Tiles(
            self.sequences[cut],
            self.tokens[cut],
            self.positions[cut],
            self.counts[cut],
            self.first_splits[cut],
            self.num_splits[cut],
        )


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Some tiles and their items. Tiles are ordered by falling number of splits, items by split."""

    num_tiles: int
    num_items: int
    # Rows of a tile, padding included.
    rows: int
    # The j-th split that a tile reads is there for the first tiles_per_split[j] tiles.
    tiles_per_split: tuple[int, ...]
    # [num_items * num_kv_heads * rows] rows of the query as [num_tokens * num_heads, head_dim].
    query_rows: Tensor
    # [num_items] tile of each item.
    item_tiles: Tensor
    # [2, num_items * num_kv_heads * blocks_per_split] rows of KvPool.head_rows: keys, values.
    read_rows: Tensor
    # [num_items, 1, rows, split_tokens] true where a row may not see a position.
    hidden: Tensor
    # [tokens * num_heads] rows of the tiles as [num_tiles * num_kv_heads * rows, head_dim]; the
    # tokens of the plan in their order.
    result_rows: Tensor


def plan_tiles(
    batch: AttentionBatch, geometry: TileGeometry, sliding_window: int | None = None
) -> tuple[TilePlan, ...]:
    """Plans whose tokens, one plan after the other, are the query tokens of the batch in order.

    With a window, splits that no token of a tile sees are not part of it.
    """
    num_single = int((batch.num_queries == 1).sum())
    parts = (
        (0, num_single, 1, geometry.single_rows),
        (num_single, len(batch.starts), geometry.chunk_queries, geometry.chunk_rows),
    )
    plans: list[TilePlan] = []
    for start, end, queries, rows in parts:
        if start == end:
            continue
        tiles = _cut_into_tiles(batch, (start, end), queries, geometry, sliding_window)
        budget = max(1, MAX_PLAN_ELEMENTS // geometry.item_elements(rows))
        plans.extend(
            _plan(batch, tiles.part(first, last), rows, geometry, sliding_window)
            for first, last in _within_budget(tiles.num_splits, budget)
        )
    return tuple(plans)


def _cut_into_tiles(
    batch: AttentionBatch,
    part: tuple[int, int],
    queries: int,
    geometry: TileGeometry,
    sliding_window: int | None,
) -> _Tiles:
    """Tiles of at most `queries` tokens of the sequences [start, end) = `part` of the batch."""
    start, end = part
    lengths = batch.num_queries[start:end]
    first_tokens = np.cumsum(batch.num_queries)[start:end] - lengths
    tiles_of = -(-lengths // queries)
    sequences = np.repeat(np.arange(len(lengths)), tiles_of)
    index_in_sequence = np.arange(len(sequences)) - np.repeat(
        np.cumsum(tiles_of) - tiles_of, tiles_of
    )
    offsets = index_in_sequence * queries
    counts = np.minimum(queries, lengths[sequences] - offsets)
    within = offsets[:, None] + np.minimum(np.arange(queries), counts[:, None] - 1)
    positions = batch.starts[start:end][sequences][:, None] + within
    first_splits = np.zeros_like(sequences)
    if sliding_window is not None:
        first_seen = np.maximum(0, positions[:, 0] - (sliding_window - 1))
        first_splits = first_seen // geometry.split_tokens
    return _Tiles(
        sequences=sequences + start,
        tokens=first_tokens[sequences][:, None] + within,
        positions=positions,
        counts=counts,
        first_splits=first_splits,
        num_splits=positions[:, -1] // geometry.split_tokens + 1 - first_splits,
    )


def _within_budget(num_splits: IntArray, budget: int) -> Iterator[tuple[int, int]]:
    """[first, last) runs of tiles with at most `budget` items, or one tile."""
    first, items = 0, 0
    for tile, splits in enumerate(num_splits.tolist()):
        if tile > first and items + splits > budget:
            yield first, tile
            first, items = tile, 0
        items += splits
    yield first, len(num_splits)


def _plan(
    batch: AttentionBatch,
    tiles: _Tiles,
    rows: int,
    geometry: TileGeometry,
    sliding_window: int | None,
) -> TilePlan:
    order = np.argsort(-tiles.num_splits, kind="stable")
    num_splits = tiles.num_splits[order]
    split_ids = np.arange(int(num_splits[0]))
    per_split = np.searchsorted(-num_splits, -split_ids, side="left")
    item_tiles = np.arange(int(per_split.sum())) - np.repeat(
        np.cumsum(per_split) - per_split, per_split
    )
    item_splits = np.repeat(split_ids, per_split) + tiles.first_splits[order][item_tiles]
    arrays = (
        _query_rows(tiles.tokens[order], item_tiles, rows, geometry),
        item_tiles,
        _read_rows(batch, tiles.sequences[order][item_tiles], item_splits, geometry),
        _hidden_positions(
            _last_seen(tiles.positions[order], rows, geometry)[item_tiles]
            - item_splits[:, None] * geometry.split_tokens,
            geometry.split_tokens,
            sliding_window,
        ),
        _result_rows(tiles, order, rows, geometry),
    )
    tensors = [to_device(array, geometry.device) for array in arrays]
    return TilePlan(len(order), len(item_tiles), rows, tuple(per_split.tolist()), *tensors)


def _query_rows(
    tokens: IntArray, item_tiles: IntArray, rows: int, geometry: TileGeometry
) -> IntArray:
    """[num_items * num_kv_heads * rows]; padding rows repeat rows of the tile."""
    heads, group = geometry.layout.num_kv_heads, geometry.group_size
    row = np.minimum(np.arange(rows), tokens.shape[1] * group - 1)
    by_row = tokens[:, row // group] * (heads * group) + row % group
    by_head = by_row[:, None, :] + np.arange(heads)[:, None] * group
    rows_of_items: IntArray = by_head[item_tiles].reshape(-1)
    return rows_of_items


def _result_rows(tiles: _Tiles, order: IntArray, rows: int, geometry: TileGeometry) -> IntArray:
    """[tokens * num_heads]: where each head of each token of the plan lies."""
    heads, group = geometry.layout.num_kv_heads, geometry.group_size
    queries = tiles.tokens.shape[1]
    place_of_tile = np.argsort(order, kind="stable")
    first = place_of_tile[:, None] * (heads * rows) + np.arange(queries) * group
    is_real = np.arange(queries) < tiles.counts[:, None]
    in_token = np.arange(heads)[:, None] * rows + np.arange(group)
    return (first[is_real][:, None, None] + in_token).reshape(-1)


def _last_seen(positions: IntArray, rows: int, geometry: TileGeometry) -> IntArray:
    """[num_tiles, rows] position of each row's token; padding rows repeat the last token's."""
    token_of_row = np.minimum(np.arange(rows) // geometry.group_size, positions.shape[1] - 1)
    return positions[:, token_of_row]


def _hidden_positions(
    last_seen: IntArray, split_tokens: int, sliding_window: int | None
) -> npt.NDArray[np.bool_]:
    """[num_items, 1, rows, split_tokens] from [num_items, rows], which counts from the split."""
    offsets = np.arange(split_tokens)
    hidden = last_seen[:, :, None] < offsets
    if sliding_window is not None:
        hidden |= last_seen[:, :, None] - sliding_window >= offsets
    return hidden[:, None]


def _read_rows(
    batch: AttentionBatch, sequences: IntArray, item_splits: IntArray, geometry: TileGeometry
) -> IntArray:
    """[2, num_items * num_kv_heads * blocks_per_split]."""
    layout, per_split = geometry.layout, geometry.blocks_per_split
    columns = item_splits[:, None] * per_split + np.arange(per_split)
    # A split may reach beyond the table; what it reads there is hidden.
    columns = np.minimum(columns, batch.block_tables.shape[1] - 1)
    blocks = batch.block_tables[sequences[:, None], columns]
    first = blocks * layout.block_rows
    keys = (first[:, None, :] + layout.key_rows()[:, None]).reshape(-1)
    return np.stack((keys, keys + layout.heads_of_group))
