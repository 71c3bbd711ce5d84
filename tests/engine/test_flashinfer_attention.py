"""What can be known of the FlashInfer backend without a GPU; the contract suite runs its fake."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import pytest
import torch

from engine.attention.backend import AttentionBatch
from engine.attention.batch_over import batch_over
from engine.attention.choice import AttentionShape, AttentionUnavailable, choose_attention
from engine.attention.flashinfer import FlashInferAttention
from engine.attention.flashinfer_calls import (
    DecodePlan,
    DecodeWrapper,
    PrefillPlan,
    PrefillWrapper,
    SharedPlan,
)
from engine.attention.flashinfer_testing import (
    FakeDecodeWrapper,
    FakeFlashInferKernels,
    FakePrefillWrapper,
)
from engine.attention.testing import reference_attention, scattered_batch
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
        return _RecordingDecode(self.decode_plans)

    def prefill_wrapper(self) -> PrefillWrapper:
        return _RecordingPrefill(self.prefill_plans)


class _RecordingDecode(FakeDecodeWrapper):
    def __init__(self, plans: list[DecodePlan]) -> None:
        super().__init__()
        self._plans = plans

    def plan(self, **arguments: Unpack[DecodePlan]) -> None:
        self._plans.append(arguments)
        super().plan(**arguments)


class _RecordingPrefill(FakePrefillWrapper):
    def __init__(self, plans: list[PrefillPlan]) -> None:
        super().__init__()
        self._plans = plans

    def plan(self, **arguments: Unpack[PrefillPlan]) -> None:
        self._plans.append(arguments)
        super().plan(**arguments)


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


def sharing_batch(num_members: int, own_tokens: int) -> AttentionBatch:
    """Members with 64 common blocks, among them one that shares nothing; then a prompt chunk."""
    others = [np.arange(64)] * num_members + [np.arange(64, 128)]
    rows = [np.concatenate((common, 128 + 8 * i + np.arange(8))) for i, common in enumerate(others)]
    rows[1], rows[-1] = rows[-1], rows[1]
    rows.append(np.concatenate((np.arange(64), np.arange(200, 208))))
    pieces = [(1024 + own_tokens + 3 * i, 1) for i in range(num_members + 1)] + [(1024, 20)]
    return batch_over(np.stack(rows), pieces, 16)


# PAPERS 7.4.5: what is fused gives what ordinary paged attention gives.
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("own_tokens", [0, 40])
def test_a_shared_beginning_gives_what_plain_attention_gives(
    own_tokens: int, kv_dtype: str
) -> None:
    layout = KvLayout(3, 2, 64, 16, kv_dtype)
    kernels, layers = RecordingKernels(), (FULL, WINDOW, replace(FULL, softcap=20.0))
    attention = FlashInferAttention(layout, 6, layers, kernels, torch.bfloat16, 0)
    batch = sharing_batch(5, own_tokens)
    pools = [KvPool(layout, 208) for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    history = torch.randn(pools[0].tensor.shape, generator=generator)
    for pool in pools:
        pool.tensor.copy_(history)
    num_tokens = len(batch.slot_mapping)
    query = torch.randn(num_tokens, 6, 64, generator=generator).bfloat16().float()
    key, value = torch.randn(2, num_tokens, 2, 64, generator=generator)
    step = attention.begin(batch, pools[0])
    for index, layer in enumerate(layers):
        actual = step.attend(index, query, key, value)
        expected = reference_attention(batch, pools[1], (index, layer), (query, key, value))
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-3)


def test_members_read_a_shared_beginning_once_and_their_own_pages_behind_it() -> None:
    kernels = RecordingKernels()
    attention = FlashInferAttention(LAYOUT, 6, (FULL, WINDOW, FULL), kernels, None, 0)
    attention.begin(sharing_batch(3, 40), KvPool(LAYOUT, 208))
    full, window = kernels.decode_plans
    # Sequence 1 shares nothing: it has all its pages; windows are planned as if nobody shared.
    assert full["indptr"].diff().tolist() == [3, 67, 3, 4]
    assert window["indptr"].diff().tolist() == [67, 67, 67, 68]
    assert full["indices"].tolist()[:3] == [128, 129, 130]
    assert full["last_page_len"].tolist() == window["last_page_len"].tolist()
    (prefix,) = [plan for plan in kernels.prefill_plans if not plan["causal"]]
    assert prefix["qo_indptr"].tolist() == [0, 3]
    assert prefix["paged_kv_indices"].tolist() == list(range(64))
    assert prefix["paged_kv_indptr"].tolist() == [0, 64]
    assert prefix["paged_kv_last_page_len"].tolist() == [16]
    assert prefix["window_left"] == -1


def test_who_shares_nothing_has_the_bits_of_attention_without_sharing() -> None:
    batch, layers = sharing_batch(5, 40), (FULL, WINDOW, FULL)
    rows = torch.randn(len(batch.slot_mapping), 6, 64, generator=torch.Generator().manual_seed(4))
    outs = []
    for min_shared_bytes in (None, 0):
        kernels = FakeFlashInferKernels()
        attention = FlashInferAttention(LAYOUT, 6, layers, kernels, None, min_shared_bytes)
        pool = KvPool(LAYOUT, 208)
        pool.tensor.copy_(torch.ones(()))
        outs.append(attention.begin(batch, pool).attend(0, rows, rows[:, :2], rows[:, 2:4]))
    assert torch.equal(outs[0][1], outs[1][1])
    assert torch.equal(outs[0][6:], outs[1][6:])


def test_little_is_read_apart_and_the_name_of_the_arithmetic_tells_of_sharing() -> None:
    kernels = RecordingKernels()
    # Two of three members need not read 1024 tokens of 512 bytes.
    saved = 2 * 1024 * 512
    for min_shared_bytes, is_shared in ((saved, True), (saved + 1, False)):
        kernels.prefill_plans.clear()
        attention = FlashInferAttention(LAYOUT, 6, (FULL,) * 3, kernels, None, min_shared_bytes)
        attention.begin(sharing_batch(3, 40), KvPool(LAYOUT, 208))
        assert any(not plan["causal"] for plan in kernels.prefill_plans) == is_shared
        assert attention.arithmetic == "flashinfer-fake-fa2-32-shared"
    assert FlashInferAttention(LAYOUT, 6, (FULL,) * 3, kernels).arithmetic == (
        "flashinfer-fake-fa2-32"
    )
