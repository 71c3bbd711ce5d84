"""Which query rows meet which KV split: the index tensors of one attention step.

A tile is a few query tokens of one sequence times the query heads that share a KV head. An item is
a tile against one split. Built once per step with numpy, used by every layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from engine.attention.backend import AttentionBatch, IntArray
from engine.kv_pool import KvLayout

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
    # [n] splits that the last token of the tile reads.
    num_splits: IntArray

    def part(self, start: int, end: int) -> "_Tiles":
        cut = slice(start, end)
        return _Tiles(
            self.sequences[cut],
            self.tokens[cut],
            self.positions[cut],
            self.counts[cut],
            self.num_splits[cut],
        )


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Some tiles and their items. Tiles are ordered by falling number of splits, items by split."""

    geometry: TileGeometry
    num_tiles: int
    num_items: int
    # Rows of a tile, padding included.
    rows: int
    # Split j is read by the first tiles_per_split[j] tiles.
    tiles_per_split: tuple[int, ...]
    # [num_tiles * queries] query tokens in tile order.
    query_tokens: Tensor
    # [num_items] tile of each item.
    item_tiles: Tensor
    # [2, num_items * num_kv_heads * blocks_per_split] rows of KvPool.head_rows: keys, values.
    read_rows: Tensor
    # [num_items, 1, rows, split_tokens] true where a row may not see a position.
    hidden: Tensor
    # [tokens] where each query token of the plan lies in tile order, in token order.
    token_places: Tensor

    def to_tiles(self, query: Tensor) -> Tensor:
        """[num_tiles, num_kv_heads, rows, head_dim] from [num_tokens, num_heads, head_dim]."""
        layout, group = self.geometry.layout, self.geometry.group_size
        picked = query.index_select(0, self.query_tokens)
        tiles = picked.view(self.num_tiles, -1, layout.num_kv_heads, group, layout.head_dim)
        tiles = tiles.transpose(1, 2).reshape(
            self.num_tiles, layout.num_kv_heads, -1, layout.head_dim
        )
        missing = self.rows - tiles.shape[2]
        return F.pad(tiles, (0, 0, 0, missing)) if missing else tiles

    def from_tiles(self, out: Tensor) -> Tensor:
        """[tokens, num_heads, head_dim] in token order; the inverse of `to_tiles`."""
        layout, group = self.geometry.layout, self.geometry.group_size
        queries = self.query_tokens.shape[0] // self.num_tiles
        rows = out[:, :, : queries * group].reshape(
            self.num_tiles, layout.num_kv_heads, queries, group, layout.head_dim
        )
        by_token = rows.transpose(1, 2).reshape(-1, layout.num_kv_heads * group, layout.head_dim)
        return by_token.index_select(0, self.token_places)


def plan_tiles(batch: AttentionBatch, geometry: TileGeometry) -> tuple[TilePlan, ...]:
    """Plans whose tokens, one plan after the other, are the query tokens of the batch in order."""
    num_single = int((batch.num_queries == 1).sum())
    parts = (
        (0, num_single, 1, geometry.single_rows),
        (num_single, len(batch.starts), geometry.chunk_queries, geometry.chunk_rows),
    )
    plans: list[TilePlan] = []
    for start, end, queries, rows in parts:
        if start == end:
            continue
        tiles = _cut_into_tiles(batch, start, end, queries, geometry)
        budget = max(1, MAX_PLAN_ELEMENTS // geometry.item_elements(rows))
        plans.extend(
            _plan(batch, tiles.part(first, last), rows, geometry)
            for first, last in _within_budget(tiles.num_splits, budget)
        )
    return tuple(plans)


def _cut_into_tiles(
    batch: AttentionBatch, start: int, end: int, queries: int, geometry: TileGeometry
) -> _Tiles:
    """Tiles of at most `queries` tokens of the sequences [start, end) of the batch."""
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
    return _Tiles(
        sequences=sequences + start,
        tokens=first_tokens[sequences][:, None] + within,
        positions=positions,
        counts=counts,
        num_splits=positions[:, -1] // geometry.split_tokens + 1,
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


def _plan(batch: AttentionBatch, tiles: _Tiles, rows: int, geometry: TileGeometry) -> TilePlan:
    order = np.argsort(-tiles.num_splits, kind="stable")
    num_splits = tiles.num_splits[order]
    split_ids = np.arange(int(num_splits[0]))
    per_split = np.searchsorted(-num_splits, -split_ids, side="left")
    item_splits = np.repeat(split_ids, per_split)
    item_tiles = np.arange(len(item_splits)) - np.repeat(
        np.cumsum(per_split) - per_split, per_split
    )
    hidden = _hidden_positions(tiles.positions[order], item_tiles, item_splits, rows, geometry)
    read_rows = _read_rows(batch, tiles.sequences[order][item_tiles], item_splits, geometry)
    queries = tiles.tokens.shape[1]
    place_of_tile = np.argsort(order, kind="stable")
    places = place_of_tile[:, None] * queries + np.arange(queries)
    is_real = np.arange(queries) < tiles.counts[:, None]
    device = geometry.device
    return TilePlan(
        geometry=geometry,
        num_tiles=len(order),
        num_items=len(item_tiles),
        rows=rows,
        tiles_per_split=tuple(per_split.tolist()),
        query_tokens=torch.from_numpy(tiles.tokens[order].reshape(-1)).to(device),
        item_tiles=torch.from_numpy(item_tiles).to(device),
        read_rows=torch.from_numpy(read_rows).to(device),
        hidden=torch.from_numpy(hidden).to(device),
        token_places=torch.from_numpy(places[is_real]).to(device),
    )


def _hidden_positions(
    positions: IntArray,
    item_tiles: IntArray,
    item_splits: IntArray,
    rows: int,
    geometry: TileGeometry,
) -> npt.NDArray[np.bool_]:
    """[num_items, 1, rows, split_tokens]; padding rows see what the last token sees."""
    token_of_row = np.minimum(np.arange(rows) // geometry.group_size, positions.shape[1] - 1)
    # Relative to the split, so that the comparison below stays small.
    last_seen = positions[item_tiles] - item_splits[:, None] * geometry.split_tokens
    hidden = last_seen[:, token_of_row, None] < np.arange(geometry.split_tokens)
    return hidden[:, None]


def _read_rows(
    batch: AttentionBatch, sequences: IntArray, item_splits: IntArray, geometry: TileGeometry
) -> IntArray:
    """[2, num_items * num_kv_heads * blocks_per_split]."""
    heads, per_split = geometry.layout.num_kv_heads, geometry.blocks_per_split
    columns = item_splits[:, None] * per_split + np.arange(per_split)
    # A split may reach beyond the table; what it reads there is hidden.
    columns = np.minimum(columns, batch.block_tables.shape[1] - 1)
    blocks = batch.block_tables[sequences[:, None], columns]
    first = blocks * (geometry.layout.num_layers * 2 * heads)
    keys = (first[:, None, :] + np.arange(heads)[:, None]).reshape(-1)
    return np.stack((keys, keys + heads))
