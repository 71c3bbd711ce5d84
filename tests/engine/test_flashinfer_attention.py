"""What can be known of the FlashInfer backend without a GPU; the contract suite runs its fake."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import pytest
import torch

from engine.attention.choice import AttentionShape, AttentionUnavailable, choose_attention
from engine.attention.flashinfer import FlashInferAttention
from engine.attention.flashinfer_calls import (
    DecodePlan,
    DecodeWrapper,
    PrefillPlan,
    PrefillWrapper,
    SharedPlan,
)
from engine.attention.flashinfer_testing import FakeFlashInferKernels
from engine.attention.testing import scattered_batch
from engine.kv_dtype import dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention

LAYOUT = KvLayout(3, 2, 64, 16, "bfloat16")
FULL, WINDOW = LayerAttention(0.125), LayerAttention(0.125, sliding_window=40, softcap=30.0)


class RecordingKernels(FakeFlashInferKernels):
    """Keeps the arguments of every plan."""

    def __init__(self) -> None:
        self.decode_plans: list[DecodePlan] = []
        self.prefill_plans: list[PrefillPlan] = []

    def decode_wrapper(self) -> DecodeWrapper:
        return _RecordingDecode(super().decode_wrapper(), self.decode_plans)

    def prefill_wrapper(self) -> PrefillWrapper:
        return _RecordingPrefill(super().prefill_wrapper(), self.prefill_plans)


class _RecordingDecode:
    def __init__(self, inner: DecodeWrapper, plans: list[DecodePlan]) -> None:
        self._inner, self._plans = inner, plans

    def plan(self, **arguments: Unpack[DecodePlan]) -> None:
        self._plans.append(arguments)
        self._inner.plan(**arguments)

    def run(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        return self._inner.run(q, paged_kv_cache)


class _RecordingPrefill:
    def __init__(self, inner: PrefillWrapper, plans: list[PrefillPlan]) -> None:
        self._inner, self._plans = inner, plans

    def plan(self, **arguments: Unpack[PrefillPlan]) -> None:
        self._plans.append(arguments)
        self._inner.plan(**arguments)

    def run(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        return self._inner.run(q, paged_kv_cache)


def planned_step() -> RecordingKernels:
    kernels = RecordingKernels()
    attention = FlashInferAttention(LAYOUT, 6, (FULL, WINDOW, FULL), kernels)
    pool = KvPool(LAYOUT, 32)
    attention.begin(scattered_batch([20, 7, 0], [1, 1, 30], 16, 32, seed=1), pool)
    return kernels


def test_each_kind_of_layer_is_planned_once_a_step() -> None:
    kernels = planned_step()
    all_plans: tuple[Sequence[SharedPlan], ...] = (kernels.decode_plans, kernels.prefill_plans)
    for plans in all_plans:
        assert [(plan["window_left"], plan["logits_soft_cap"]) for plan in plans] == [
            (-1, None),
            (39, 30.0),
        ]


def test_a_batch_without_chunks_plans_no_prefill() -> None:
    kernels = RecordingKernels()
    attention = FlashInferAttention(LAYOUT, 6, (FULL,) * 3, kernels)
    attention.begin(scattered_batch([20, 7], [1, 1], 16, 32, seed=1), KvPool(LAYOUT, 32))
    assert len(kernels.decode_plans) == 1
    assert not kernels.prefill_plans


@pytest.mark.parametrize(
    ("query_dtype", "kv_dtype"),
    [
        (torch.float32, "float32"),
        (torch.float32, "fp8_e4m3"),
        (None, "fp8_e4m3"),
        (torch.bfloat16, "float16"),
        (torch.float16, "float32"),
    ],
)
def test_pairs_without_kernels_are_refused_with_the_remedy(
    query_dtype: torch.dtype | None, kv_dtype: str
) -> None:
    layout = KvLayout(1, 2, 64, 16, kv_dtype)
    with pytest.raises(ValueError, match="use --dtype bfloat16 or float16"):
        FlashInferAttention(layout, 6, (FULL,), FakeFlashInferKernels(), query_dtype)


@pytest.mark.parametrize("query_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8_e4m3"])
def test_plans_name_the_dtypes_of_the_model_and_of_the_pool(
    query_dtype: torch.dtype, kv_dtype: str
) -> None:
    name = dtype_name(query_dtype) if kv_dtype == "auto" else kv_dtype
    layout = replace(LAYOUT, dtype=name)
    kernels = RecordingKernels()
    attention = FlashInferAttention(layout, 6, (FULL,) * 3, kernels, query_dtype)
    attention.begin(scattered_batch([20, 0], [1, 30], 16, 32, seed=1), KvPool(layout, 32))
    plans: list[SharedPlan] = [*kernels.decode_plans, *kernels.prefill_plans]
    assert [(plan["q_data_type"], plan["kv_data_type"]) for plan in plans] == [
        (query_dtype, layout.torch_dtype)
    ] * 2


def test_asking_for_flashinfer_on_a_cpu_says_what_it_needs() -> None:
    shape = AttentionShape(LAYOUT, 6, (FULL,) * 3, torch.device("cpu"))
    with pytest.raises(AttentionUnavailable, match="CUDA device; choose --attention auto"):
        choose_attention(shape, "flashinfer")
