"""A fake of FlashInfer's paged wrappers: their documented contract, in plain torch."""

from typing import Unpack

import torch
from torch import Tensor

from engine.attention.flashinfer_calls import (
    DecodePlan,
    DecodeWrapper,
    PrefillPlan,
    PrefillWrapper,
    SharedPlan,
)


class FakeFlashInferKernels:
    """In place of `InstalledKernels`, on any device."""

    version = "fake"

    def decode_wrapper(self) -> DecodeWrapper:
        return _FakeDecodeWrapper()

    def prefill_wrapper(self) -> PrefillWrapper:
        return _FakePrefillWrapper()


class _FakeDecodeWrapper:
    """One query token a request, which is the last of its KV."""

    def __init__(self) -> None:
        self._planned: DecodePlan | None = None

    def plan(self, **arguments: Unpack[DecodePlan]) -> None:
        self._planned = arguments

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        planned = self._planned
        assert planned is not None
        pages = (planned["indptr"], planned["indices"], planned["last_page_len"])
        ones = torch.arange(len(q) + 1)
        return _attend(q, paged_kv_cache, (ones, *pages), planned)


class _FakePrefillWrapper:
    """Some query tokens a request, the last of its KV, each seeing no later one."""

    def __init__(self) -> None:
        self._planned: PrefillPlan | None = None

    def plan(self, **arguments: Unpack[PrefillPlan]) -> None:
        assert arguments["causal"]
        self._planned = arguments

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        planned = self._planned
        assert planned is not None
        pages = (
            planned["paged_kv_indptr"],
            planned["paged_kv_indices"],
            planned["paged_kv_last_page_len"],
        )
        return _attend(q, paged_kv_cache, (planned["qo_indptr"], *pages), planned)


def _attend(
    q: Tensor, cache: tuple[Tensor, Tensor], pages: tuple[Tensor, ...], planned: SharedPlan
) -> Tensor:
    """Softmax attention of every request, in float64, rounded to the type of the query."""
    qo_indptr, indptr, indices, last_page_len = pages
    assert len(q) == qo_indptr[-1]
    assert q.dtype == planned["q_data_type"]
    assert cache[0].dtype == cache[1].dtype == planned["kv_data_type"]
    size, group = planned["page_size"], planned["num_qo_heads"] // planned["num_kv_heads"]
    out = torch.empty_like(q)
    for request, last in enumerate(last_page_len.tolist()):
        mine = indices[indptr[request] : indptr[request + 1]]
        length = (len(mine) - 1) * size + last
        keys, values = (
            part[mine].transpose(1, 2).flatten(0, 1)[:length].double().repeat_interleave(group, 1)
            for part in cache
        )
        first, end = int(qo_indptr[request]), int(qo_indptr[request + 1])
        scores = torch.einsum("qhd,khd->hqk", q[first:end].double(), keys) * planned["sm_scale"]
        if cap := planned["logits_soft_cap"]:
            scores = cap * torch.tanh(scores / cap)
        distance = torch.arange(length - (end - first), length)[:, None] - torch.arange(length)
        hidden = distance < 0
        if planned["window_left"] >= 0:
            hidden |= distance > planned["window_left"]
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        out[first:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out
