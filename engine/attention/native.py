"""Attention by a compiled kernel that reads the pool in place (engine/native/attention.c).

A row's operations and their order depend on the row alone: no products in batches, no copies of
KV, nothing to find out by experiment. Arithmetic is float32 whatever the pool holds.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch, IntArray
from engine.attention.native_shared import SharedTiles, TilePlanner
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention
from engine.native.calls import AttentionCall, AttentionStep
from engine.native.library import KernelLibrary

# As in the C source.
MAX_HEAD_DIM = 256
MAX_GROUP_SIZE = 32

# Pairs of a query token and a key below which a second thread costs more than it saves.
_MIN_PAIRS_OF_THREAD = 100


def fits(layout: KvLayout, num_heads: int) -> bool:
    """Whether the kernel is made for these shapes and numbers."""
    group_size = num_heads // layout.num_kv_heads
    is_small = layout.head_dim <= MAX_HEAD_DIM and group_size <= MAX_GROUP_SIZE
    return is_small and layout.torch_dtype in (torch.float32, torch.bfloat16)


class NativeAttention:
    """The compiled kernel for `num_heads` query heads over pools of one layout, on the CPU."""

    def __init__(
        self,
        layout: KvLayout,
        num_heads: int,
        layers: tuple[LayerAttention, ...],
        kernels: KernelLibrary,
        *,
        is_sharing: bool = True,
    ) -> None:
        """`is_sharing`: whether KV of a common beginning is read once; the bits are the same.

        Raises: ValueError for what `fits` refuses.
        """
        if not fits(layout, num_heads):
            raise ValueError(f"no kernel for {layout} with {num_heads} heads; use SplitKvAttention")
        self._layout = layout
        self._num_heads = num_heads
        self.layers = layers
        self.kernels = kernels
        self._planner = TilePlanner(layout, num_heads) if is_sharing else None

    @property
    def arithmetic(self) -> str:
        """The digest of the kernel, its compiler and the processor."""
        return f"native-{self.kernels.digest}"

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> "NativeStep":
        pairs = int(batch.num_queries @ (batch.starts + batch.num_queries))
        num_threads = min(torch.get_num_threads(), 1 + pairs // _MIN_PAIRS_OF_THREAD)
        return NativeStep(self._describe(batch, kv_pool, num_threads), num_threads, self)

    def _describe(self, batch: AttentionBatch, kv_pool: KvPool, num_threads: int) -> "_HeldStep":
        layout = self._layout
        arrays = tuple(
            np.ascontiguousarray(array, np.int64)
            for array in (
                batch.starts, batch.num_queries, batch.block_tables, batch.slot_mapping
            )
        )  # fmt: skip
        starts, num_queries, tables, slots = (array.ctypes.data for array in arrays)
        # Blocks, groups of heads, layers, keys or values, heads of a group.
        strides = kv_pool.tensor.stride()[:5]
        step = AttentionStep(
            kv_pool.tensor.data_ptr(),
            layout.torch_dtype == torch.bfloat16,
            *strides,
            layout.heads_of_group,
            layout.num_kv_heads,
            layout.block_size,
            layout.head_dim,
            self._num_heads // layout.num_kv_heads,
            len(batch.starts),
            len(batch.slot_mapping),
            starts,
            num_queries,
            tables,
            batch.block_tables.shape[1],
            slots,
        )
        shared = None if self._planner is None else self._planner.plan(batch, num_threads)
        if shared is not None:
            _describe_shared(step, shared)
        return _HeldStep(step, arrays, shared, kv_pool)


def _describe_shared(step: AttentionStep, shared: SharedTiles) -> None:
    step.num_rounds = len(shared.rounds) - 1
    step.rounds = shared.rounds.ctypes.data
    step.tiles = shared.tiles.ctypes.data
    step.members = shared.members.ctypes.data
    step.shared_tokens = shared.shared_tokens.ctypes.data
    step.longest_member = shared.longest_member
    step.states = shared.states.ctypes.data


@dataclass(frozen=True, slots=True)
class _HeldStep:
    """What the kernel reads, and the owners of the memory behind its addresses."""

    step: AttentionStep
    arrays: tuple[IntArray, ...]
    shared: SharedTiles | None
    kv_pool: KvPool


class NativeStep:
    """One step: its description, and the call of a layer."""

    def __init__(self, held: _HeldStep, num_threads: int, attention: NativeAttention) -> None:
        self._held = held
        self.num_threads = num_threads
        self._attention = attention

    @property
    def description(self) -> AttentionStep:
        """For a call from C; what it points to lives as long as this step."""
        return self._held.step

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        settings = self._attention.layers[layer]
        out = torch.empty(query.shape, dtype=torch.float32)
        rows = (_with_whole_tokens(query), _with_whole_tokens(key), _with_whole_tokens(value))
        call = AttentionCall(
            layer,
            settings.scale,
            settings.softcap or 0.0,
            settings.sliding_window or 0,
            *(tensor.data_ptr() for tensor in rows),
            *(tensor.stride(0) for tensor in rows),
            out.data_ptr(),
            False,
        )
        attend = self._attention.kernels.functions.tandem_attend
        attend(ctypes.byref(self._held.step), ctypes.byref(call), ctypes.c_int64(self.num_threads))
        return out


def _with_whole_tokens(rows: Tensor) -> Tensor:
    """[num_tokens, heads, head_dim] float32 with heads side by side; a view where it can be."""
    dim = rows.shape[2]
    if rows.dtype == torch.float32 and rows.stride(2) == 1 and rows.stride(1) == dim:
        return rows
    return rows.float().contiguous()
