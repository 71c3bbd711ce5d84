"""Attention in torch whose result for a token does not depend on the rest of the batch.

The keys of a sequence are cut into splits of a fixed number of tokens, counted from its start. An
item is one tile of query rows against one split: a product of fixed shape, many in one batch. The
partial results of a tile are then joined in the order of the splits. Neither the chunk nor the
neighbours of a token change any of these shapes or orders; see docs/decisions/batch-invariance.md.
Arithmetic is float32 whatever the pool holds.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch
from engine.attention.kv_write import write_new, write_rows
from engine.attention.tile_plan import TileGeometry, TilePlan, plan_tiles
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention
from engine.row_tiles import ProductShape, RowTiles, find_row_tiles

# Tokens of a KV split, rounded to whole blocks.
SPLIT_TOKENS = 64
# Rows of a tile in a prompt chunk, where the machine's row counts allow it.
CHUNK_TILE_ROWS = 64
# Score of a hidden position: finite, so that a fully hidden row stays free of NaN.
_HIDDEN_SCORE = -1.0e30


class SplitKvAttention:
    """Split attention for `num_heads` query heads over pools of one layout."""

    def __init__(
        self,
        layout: KvLayout,
        num_heads: int,
        layers: tuple[LayerAttention, ...],
        device: torch.device,
    ) -> None:
        """Find the row counts at which this machine's products agree (milliseconds).

        Raises: NoCommonRowCount.
        """
        self._layers = layers
        group_size = num_heads // layout.num_kv_heads
        blocks_per_split = max(1, SPLIT_TOKENS // layout.block_size)
        dim, split, exact = layout.head_dim, blocks_per_split * layout.block_size, torch.float32
        self.row_tiles: RowTiles = find_row_tiles(
            (
                ProductShape(dim, split, exact, device, batched=True, transposed=True),
                ProductShape(split, dim, exact, device, batched=True),
            ),
            min_rows=group_size,
        )
        allowed = [size for size in self.row_tiles.sizes if size >= group_size]
        self._workspace = Workspace(device)
        self.geometry = TileGeometry(
            layout=layout,
            group_size=group_size,
            blocks_per_split=blocks_per_split,
            single_rows=allowed[0],
            chunk_rows=max((s for s in allowed if s <= CHUNK_TILE_ROWS), default=allowed[0]),
            device=device,
        )

    @property
    def arithmetic(self) -> str:
        """The split length and the fingerprint of the products."""
        return f"split-{self.geometry.split_tokens}-{self.row_tiles.fingerprint}"

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> "SplitKvStep":
        return SplitKvStep(self.geometry, self._layers, batch, kv_pool, self._workspace)


class SplitKvStep:
    """One step: index tensors that every layer shares, and the work of a layer."""

    def __init__(
        self,
        geometry: TileGeometry,
        layers: tuple[LayerAttention, ...],
        batch: AttentionBatch,
        kv_pool: KvPool,
        workspace: "Workspace",
    ) -> None:
        self._geometry = geometry
        self._pool = kv_pool
        self._workspace = workspace
        self._layers = layers
        self._new_rows = write_rows(batch, kv_pool)
        # One set of plans for each window that the layers have.
        self._plans = {
            window: plan_tiles(batch, geometry, window)
            for window in dict.fromkeys(layer.sliding_window for layer in layers)
        }

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        write_new(self._pool, layer, self._new_rows, key, value)
        settings = self._layers[layer]
        scaled = (query.float() * settings.scale).view(-1, self._geometry.layout.head_dim)
        plans = self._plans[settings.sliding_window]
        parts = [self._attend_tiles(layer, plan, scaled) for plan in plans]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(query.shape)

    def _attend_tiles(self, layer: int, plan: TilePlan, query: Tensor) -> Tensor:
        """[tokens of the plan * num_heads, head_dim] from the rows of all query tokens."""
        heads, dim = self._geometry.layout.num_kv_heads, self._geometry.layout.head_dim
        num_items, rows, split = plan.num_items, plan.rows, self._geometry.split_tokens
        products = num_items * heads
        workspace = self._workspace
        keys = self._read(layer, plan.read_rows[0], "keys").view(products, split, dim)
        values = self._read(layer, plan.read_rows[1], "values").view(products, split, dim)
        queries = query.index_select(0, plan.query_rows).view(products, rows, dim)
        scores = workspace.take("scores", products, rows, split)
        torch.bmm(queries, keys.transpose(1, 2), out=scores)
        softcap = self._layers[layer].softcap
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        scores.view(num_items, heads, rows, split).masked_fill_(plan.hidden, _HIDDEN_SCORE)
        best = scores.amax(-1, keepdim=True)
        scores.sub_(best).exp_()
        weight = scores.sum(-1, keepdim=True)
        out = workspace.take("out", products, rows, dim)
        torch.bmm(scores, values, out=out)
        if num_items != plan.num_tiles:
            by_item = (num_items, heads, rows, -1)
            out, weight = _join_splits(
                plan, best.view(by_item), weight.view(by_item), out.view(by_item)
            )
        return out.div_(weight).view(-1, dim).index_select(0, plan.result_rows)

    def _read(self, layer: int, rows: Tensor, name: str) -> Tensor:
        """The pool's head rows `rows` as float32, in the workspace."""
        cached = self._pool.head_rows(layer)
        raw = self._workspace.take(name, rows.shape[0], cached.shape[1], dtype=cached.dtype)
        torch.index_select(cached, 0, rows, out=raw)
        if raw.dtype == torch.float32:
            return raw
        numbers = raw.view(self._geometry.layout.torch_dtype)
        return self._workspace.take(name, rows.shape[0], cached.shape[1]).copy_(numbers)


class Workspace:
    """Memory for large intermediate tensors, kept between layers and steps.

    Fresh memory of this size would be returned to the system and cleared by it at every layer.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of this shape with any content; valid until the name is taken again."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.shape[0] < size:
            # A normal tensor even in inference mode: it outlives the step.
            with torch.inference_mode(False):
                buffer = torch.empty(size, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)


def _join_splits(
    plan: TilePlan, best: Tensor, weight: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over the splits of each tile, scaled to the tile's highest score; in place.

    Shapes: best, weight [num_items, num_kv_heads, rows, 1]; out [..., head_dim]; results the same
        with num_tiles.
    """
    counts = plan.tiles_per_split
    starts = tuple(accumulate(counts, initial=0))
    highest = best[: counts[0]].clone()
    for count, start in zip(counts[1:], starts[1:], strict=False):
        torch.maximum(highest[:count], best[start : start + count], out=highest[:count])
    factor = best.sub_(highest.index_select(0, plan.item_tiles)).exp_()
    weight.mul_(factor)
    out.mul_(factor)
    # The first split's results are the accumulators; each addition is rounded alone, in order.
    total_weight, total = weight[: counts[0]], out[: counts[0]]
    for count, start in zip(counts[1:], starts[1:], strict=False):
        total_weight[:count].add_(weight[start : start + count])
        total[:count].add_(out[start : start + count])
    return total, total_weight
