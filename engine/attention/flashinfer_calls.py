"""Exactly the calls that are made of FlashInfer 0.6.6 up to 0.7, as types.

The package has no types of its own that can be relied on where it is not installed: these stand in
for it, and tests/engine/test_flashinfer_signatures.py compares them with its sources.
"""

from typing import Protocol, TypedDict, Unpack

import torch
from torch import Tensor


class SharedPlan(TypedDict):
    """What both kinds of wrapper are told of a step; all by keyword, positions move."""

    num_qo_heads: int
    num_kv_heads: int
    page_size: int
    sm_scale: float
    # Tokens before the query that it sees; -1: all.
    window_left: int
    logits_soft_cap: float | None
    q_data_type: torch.dtype
    kv_data_type: torch.dtype
    # Pages of a piece of KV that is worked on at once.
    fixed_split_size: int


class DecodePlan(SharedPlan):
    """One query token a request. Index tensors are int32, on the host."""

    # [num_requests + 1]
    indptr: Tensor
    # [indptr[-1]], ids of pages
    indices: Tensor
    # [num_requests], tokens in the last page of each
    last_page_len: Tensor
    head_dim: int


class PrefillPlan(SharedPlan):
    """Some query tokens a request. Index tensors are int32, on the host."""

    # [num_requests + 1], of query tokens
    qo_indptr: Tensor
    # As those of decode.
    paged_kv_indptr: Tensor
    paged_kv_indices: Tensor
    paged_kv_last_page_len: Tensor
    head_dim_qk: int
    causal: bool


class PagedWrapper(Protocol):
    """Computes what was planned last."""

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor: ...

    def run_return_lse(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Also [num_tokens, num_qo_heads], float32: logarithms, to base 2, of the sums that softmax
        divides by.
        """
        ...


class DecodeWrapper(PagedWrapper, Protocol):
    """BatchDecodeWithPagedKVCacheWrapper."""

    def plan(self, **arguments: Unpack[DecodePlan]) -> None: ...


class PrefillWrapper(PagedWrapper, Protocol):
    """BatchPrefillWithPagedKVCacheWrapper."""

    def plan(self, **arguments: Unpack[PrefillPlan]) -> None: ...


class MakeDecodeWrapper(Protocol):
    """Its constructor."""

    def __call__(
        self,
        float_workspace_buffer: Tensor,
        *,
        kv_layout: str,
        use_tensor_cores: bool,
        backend: str,
    ) -> DecodeWrapper: ...


class MakePrefillWrapper(Protocol):
    """Its constructor."""

    def __call__(
        self, float_workspace_buffer: Tensor, *, kv_layout: str, backend: str
    ) -> PrefillWrapper: ...


class MergeState(Protocol):
    """merge_state: attention over two parts of the KV becomes that over both."""

    def __call__(
        self, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class FlashInferPackage(Protocol):
    """The module `flashinfer`."""

    __version__: str
    BatchDecodeWithPagedKVCacheWrapper: MakeDecodeWrapper
    BatchPrefillWithPagedKVCacheWrapper: MakePrefillWrapper
    merge_state: MergeState
