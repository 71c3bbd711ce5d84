"""What can be known of the FlashInfer backend without a GPU; the contract suite runs its fake."""

from collections.abc import Sequence
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


def test_float32_kv_is_refused_with_the_remedy() -> None:
    layout = KvLayout(1, 2, 64, 16, "float32")
    with pytest.raises(ValueError, match="--dtype bfloat16"):
        FlashInferAttention(layout, 6, (FULL,), FakeFlashInferKernels())


def test_asking_for_flashinfer_on_a_cpu_says_what_it_needs() -> None:
    shape = AttentionShape(LAYOUT, 6, (FULL,) * 3, torch.device("cpu"))
    with pytest.raises(AttentionUnavailable, match="CUDA device; choose --attention auto"):
        choose_attention(shape, "flashinfer")
