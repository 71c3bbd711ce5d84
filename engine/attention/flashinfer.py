"""Attention by FlashInfer's kernels, on CUDA.

Written from FlashInfer 0.6.6 (HND pages, page strides) and tested against a fake of that contract,
its calls against the signatures of 0.6.6 (engine/attention/flashinfer_calls.py); nothing here has
been measured on a GPU.

Determinism: left to itself FlashInfer cuts long KV by how full the GPU is, so a token's bits would
depend on its batch. Here the cut is fixed (`fixed_split_size`, FA2 kernels, and for single tokens
their tensor-core variant, which alone knows it), which its documentation calls invariant to the
batch size; tests/engine/attention/test_on_cuda.py asks. Between a prompt chunk and a single token
the tiles may still differ, and those of chunks follow their mean length in a pass, so a recomputed
token may differ in the last bit from the decoded one: bitwise equality is promised on the CPU only.
Shared beginnings (engine/attention/flashinfer_shared.py) are read once only where that is asked
for. FA3, faster on Hopper, has no fixed cut.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch
from engine.attention.flashinfer_calls import (
    DecodePlan,
    DecodeWrapper,
    FlashInferPackage,
    MergeState,
    PrefillPlan,
    PrefillWrapper,
    SharedPlan,
)
from engine.attention.flashinfer_shared import SharedAttention, SharedPagesPlanner
from engine.attention.kv_write import write_new, write_rows
from engine.attention.paged_plan import Int32Array, PagedPlan, plan_pages
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention

# Shared by all kernels; FlashInfer recommends this size.
WORKSPACE_BYTES = 128 * 2**20
# Tokens of a KV cut, rounded to whole blocks.
SPLIT_TOKENS = 512
_HND = "HND"


def has_kernels(query_dtype: torch.dtype, kv_dtype: torch.dtype) -> bool:
    """Whether FlashInfer (FA2) attends with such queries over such a pool."""
    if query_dtype not in (torch.bfloat16, torch.float16):
        return False
    return kv_dtype in (query_dtype, torch.float8_e4m3fn)


class FlashInferKernels(Protocol):
    """Makes wrappers over one workspace."""

    @property
    def version(self) -> str: ...

    @property
    def copies_to_gpu(self) -> bool:
        """Whether a plan is copied to a GPU, which waits unless it lies in pinned memory."""
        ...

    def decode_wrapper(self) -> DecodeWrapper: ...

    def prefill_wrapper(self) -> PrefillWrapper: ...

    @property
    def merge_state(self) -> MergeState: ...


class InstalledKernels:
    """The package `flashinfer`; compiles or loads kernels when a wrapper is first planned."""

    def __init__(self, device: torch.device) -> None:
        import flashinfer

        self._package: FlashInferPackage = flashinfer
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)

    @property
    def version(self) -> str:
        return str(self._package.__version__)

    @property
    def copies_to_gpu(self) -> bool:
        return self._workspace.device.type == "cuda"

    def decode_wrapper(self) -> DecodeWrapper:
        return self._package.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, kv_layout=_HND, use_tensor_cores=True, backend="fa2"
        )

    def prefill_wrapper(self) -> PrefillWrapper:
        return self._package.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, kv_layout=_HND, backend="fa2"
        )

    @property
    def merge_state(self) -> MergeState:
        return self._package.merge_state


class FlashInferAttention:
    """FlashInfer for `num_heads` query heads over pools of one layout, in 16 bits or FP8."""

    def __init__(
        self,
        layout: KvLayout,
        num_heads: int,
        layers: tuple[LayerAttention, ...],
        kernels: FlashInferKernels,
        query_dtype: torch.dtype | None = None,
        min_shared_bytes: int | None = None,
    ) -> None:
        """`query_dtype`: what queries are rounded to; None: what the pool holds.

        `min_shared_bytes`: beginnings that several sequences share are read once where that saves
        so much in a layer; who shares then has other last bits than alone. None: never.

        Raises: ValueError for what FlashInfer has no kernels for, or a pool with heads at various
        distances.
        """
        self._query_dtype = query_dtype or layout.torch_dtype
        if not has_kernels(self._query_dtype, layout.torch_dtype):
            raise ValueError(
                f"FlashInfer has no kernels for {self._query_dtype} over {layout.dtype} KV; "
                "use --dtype bfloat16 or float16"
            )
        if layout.head_groups not in (1, layout.num_kv_heads):
            raise ValueError(f"FlashInfer takes one stride between heads, and {layout} has two")
        self._layout = layout
        self._layers = layers
        self._kernels = kernels
        self._num_heads = num_heads
        # Wrappers keep the plan of a step: one pair for each kind of layer, reused by every other
        # step. The plan lies in pinned memory until the device comes to it: while one step runs,
        # the next is planned in the other set, whose step has ended.
        self._sets = [
            {
                layer: _Wrappers(
                    kernels.decode_wrapper(),
                    kernels.prefill_wrapper(),
                    # What a window leaves behind is not read, and so not together.
                    kernels.prefill_wrapper()
                    if min_shared_bytes is not None and layer.sliding_window is None
                    else None,
                )
                for layer in dict.fromkeys(layers)
            }
            for _ in range(2)
        ]
        self._planner: SharedPagesPlanner | None = None
        if min_shared_bytes is not None:
            size = layout.block_size
            token_bytes = layout.block_bytes // layout.num_layers // size
            unit_tokens = self._split_blocks * size
            self._planner = SharedPagesPlanner(size, unit_tokens, token_bytes, min_shared_bytes)

    @property
    def arithmetic(self) -> str:
        """The version of the kernels, the cut, and whether beginnings may be shared."""
        sharing = "" if self._planner is None else "-shared"
        return f"flashinfer-{self._kernels.version}-fa2-{self._split_blocks}{sharing}"

    @property
    def _split_blocks(self) -> int:
        return max(1, SPLIT_TOKENS // self._layout.block_size)

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> "FlashInferStep":
        num_single = int((batch.num_queries == 1).sum())
        num_seqs, size = len(batch.starts), self._layout.block_size
        self._sets.reverse()
        by_kind = self._sets[0]
        shared = None if self._planner is None else self._planner.plan(batch)
        if num_single:
            single = plan_pages(batch, 0, num_single, size)
            for layer, wrappers in by_kind.items():
                if shared is None or wrappers.prefix is None:
                    wrappers.decode.plan(**self._decode_arguments(single, layer))
                    continue
                own = plan_pages(batch, 0, num_single, size, shared.num_pages)
                wrappers.decode.plan(**self._decode_arguments(own, layer))
                arguments = self._prefill_arguments(shared.pages, layer)
                wrappers.prefix.plan(**arguments | {"causal": False})
        if num_single < num_seqs:
            chunks = plan_pages(batch, num_single, num_seqs, size)
            for layer, wrappers in by_kind.items():
                wrappers.prefill.plan(**self._prefill_arguments(chunks, layer))
        by_layer = tuple(by_kind[layer] for layer in self._layers)
        new_rows = write_rows(batch, kv_pool)
        sharing = None
        if shared is not None:
            sharing = SharedAttention(shared, kv_pool.device, self._kernels.merge_state)
        return FlashInferStep(by_layer, num_single, new_rows, kv_pool, self._query_dtype, sharing)

    def _decode_arguments(self, pages: PagedPlan, layer: LayerAttention) -> DecodePlan:
        return {
            **self._shared_arguments(layer),
            "indptr": _tensor(pages.indptr),
            "indices": self._page_ids(pages),
            "last_page_len": _tensor(pages.last_page_len),
            "head_dim": self._layout.head_dim,
        }

    def _prefill_arguments(self, pages: PagedPlan, layer: LayerAttention) -> PrefillPlan:
        return {
            **self._shared_arguments(layer),
            "qo_indptr": _tensor(pages.qo_indptr),
            "paged_kv_indptr": _tensor(pages.indptr),
            "paged_kv_indices": self._page_ids(pages),
            "paged_kv_last_page_len": _tensor(pages.last_page_len),
            "head_dim_qk": self._layout.head_dim,
            "causal": True,
        }

    def _page_ids(self, pages: PagedPlan) -> Tensor:
        """In host memory, as the kernels' planning takes it; pinned, since it goes to the device
        as it is, and is long."""
        page_ids = _tensor(pages.indices)
        return page_ids.pin_memory() if self._kernels.copies_to_gpu else page_ids

    def _shared_arguments(self, layer: LayerAttention) -> SharedPlan:
        window = layer.sliding_window
        return {
            "num_qo_heads": self._num_heads,
            "num_kv_heads": self._layout.num_kv_heads,
            "page_size": self._layout.block_size,
            "sm_scale": layer.scale,
            # FlashInfer counts the tokens before the query; ours counts the query as well.
            "window_left": -1 if window is None else window - 1,
            "logits_soft_cap": layer.softcap,
            # Numbers in FP8 count as they are: without k_scale and v_scale `run` takes both as 1.
            "q_data_type": self._query_dtype,
            "kv_data_type": self._layout.torch_dtype,
            "fixed_split_size": self._split_blocks,
        }


@dataclass(frozen=True, slots=True)
class _Wrappers:
    """The kernels of one kind of layer: single tokens, prompt chunks, and shared beginnings."""

    decode: DecodeWrapper
    prefill: PrefillWrapper
    # None where this kind shares none.
    prefix: PrefillWrapper | None


class FlashInferStep:
    """One step over planned wrappers."""

    def __init__(
        self,
        wrappers: tuple[_Wrappers, ...],
        num_single: int,
        new_rows: Tensor,
        kv_pool: KvPool,
        query_dtype: torch.dtype,
        sharing: SharedAttention | None,
    ) -> None:
        self._sharing = sharing
        self._wrappers = wrappers
        self._num_single = num_single
        self._new_rows = new_rows
        self._pool = kv_pool
        self._query_dtype = query_dtype

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        write_new(self._pool, layer, self._new_rows, key, value)
        # [num_blocks, num_kv_heads, block_size, head_dim] each, with gaps between blocks and
        # between heads: strides, which both are read by and which are equal.
        keys, values = self._pool.layer(layer).unbind(1)
        rows = query.to(self._query_dtype).contiguous()
        wrappers, single = self._wrappers[layer], self._num_single
        parts = []
        if single and self._sharing is not None and wrappers.prefix is not None:
            parts.append(
                self._sharing.attend(
                    wrappers.prefix, wrappers.decode, rows[:single], (keys, values)
                )
            )
        elif single:
            parts.append(wrappers.decode.run(rows[:single], (keys, values)))
        if single < len(rows):
            parts.append(wrappers.prefill.run(rows[single:], (keys, values)))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).float()


def _tensor(array: Int32Array) -> Tensor:
    # Host memory: the wrappers plan on the host and copy what their kernels need.
    return torch.from_numpy(array)
