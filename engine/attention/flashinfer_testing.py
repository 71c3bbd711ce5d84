"""A fake of FlashInfer's paged wrappers: their documented contract, in plain torch."""

import math
from abc import ABC, abstractmethod
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
    copies_to_gpu = False

    def decode_wrapper(self) -> DecodeWrapper:
        return FakeDecodeWrapper()

    def prefill_wrapper(self) -> PrefillWrapper:
        return FakePrefillWrapper()

    def merge_state(
        self, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of two parts of the KV, each with the logarithm of what softmax divided by."""
        assert v_a.shape == v_b.shape == (*s_a.shape, v_a.shape[-1])
        assert s_a.dtype == s_b.dtype == torch.float32
        both = torch.logaddexp2(s_a.double(), s_b.double())
        shares = (torch.exp2(s.double() - both)[..., None] for s in (s_a, s_b))
        joined = sum(share * v.double() for share, v in zip(shares, (v_a, v_b), strict=True))
        return torch.as_tensor(joined).to(v_a.dtype), both.float()


class _Wrapper(ABC):
    """What both wrappers have in common."""

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        return self.run_return_lse(q, paged_kv_cache)[0]

    @abstractmethod
    def run_return_lse(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]: ...


class FakeDecodeWrapper(_Wrapper):
    """One query token a request, which is the last of its KV."""

    def __init__(self) -> None:
        self._planned: DecodePlan | None = None

    def plan(self, **arguments: Unpack[DecodePlan]) -> None:
        self._planned = arguments

    def run_return_lse(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        planned = self._planned
        assert planned is not None
        pages = (planned["indptr"], planned["indices"], planned["last_page_len"])
        ones = torch.arange(len(q) + 1)
        return _attend(q, paged_kv_cache, (ones, *pages), planned, causal=True)


class FakePrefillWrapper(_Wrapper):
    """Some query tokens a request, the last of its KV, each seeing no later one if causal."""

    def __init__(self) -> None:
        self._planned: PrefillPlan | None = None

    def plan(self, **arguments: Unpack[PrefillPlan]) -> None:
        assert arguments["causal"] or arguments["window_left"] == -1
        self._planned = arguments

    def run_return_lse(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        planned = self._planned
        assert planned is not None
        pages = (
            planned["paged_kv_indptr"],
            planned["paged_kv_indices"],
            planned["paged_kv_last_page_len"],
        )
        causal = planned["causal"]
        return _attend(q, paged_kv_cache, (planned["qo_indptr"], *pages), planned, causal=causal)


def _attend(
    q: Tensor,
    cache: tuple[Tensor, Tensor],
    pages: tuple[Tensor, ...],
    planned: SharedPlan,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every request, in float64, rounded to the type of the query; and lse."""
    qo_indptr, indptr, indices, last_page_len = pages
    assert len(q) == qo_indptr[-1]
    assert q.dtype == planned["q_data_type"]
    assert cache[0].dtype == cache[1].dtype == planned["kv_data_type"]
    size, group = planned["page_size"], planned["num_qo_heads"] // planned["num_kv_heads"]
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32)
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
        hidden = (distance < 0) & causal
        if planned["window_left"] >= 0:
            hidden |= distance > planned["window_left"]
        scores = scores.masked_fill(hidden, -torch.inf)
        lse[first:end] = torch.logsumexp(scores, -1).T / math.log(2)
        weights = torch.softmax(scores, -1)
        out[first:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out, lse
