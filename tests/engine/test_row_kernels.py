"""Row kernels beside torch: the same function of every family, in both dtypes of 16 bits.

The bound: numbers are rounded to the model's dtype at the same places but two (of_sum, normalised
heads), so each part is within two roundings, and a model within what rounding moves it anyway:
both are compared with the same model in float32.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention.choice import AttentionShape, choose_attention
from engine.attention.testing import scattered_batch
from engine.kv_dtype import dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import Activation, ModelConfig
from engine.model_runner import ModelRunner
from engine.models.capture_testing import FakeCapture
from engine.models.decoder import Decoder
from engine.models.flashinfer_rows import FlashInferRows
from engine.models.flashinfer_rows_testing import FakeFlashInferRowCalls
from engine.models.gated import choose_gated
from engine.models.heads import HeadCounts, StepHeads, TurnedHeads
from engine.models.norm import RmsNorm
from engine.models.rope import build_rope_table
from engine.models.row_kernels_choice import RowKernelsUnavailable, choose_row_kernels
from engine.models.with_row_kernels import with_row_kernels
from engine.random_weights_testing import RandomTensors, make_random_decoder
from engine.testing import TrialRequest, TrialResult, family_config, run_together
from engine.weights import read_decoder_weights
from scheduling.sampling import SamplingParams

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float16)
# Half the distance between numbers near one.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
BLOCK_SIZE, NUM_BLOCKS = 8, 64
REQUESTS = [
    TrialRequest(tuple(range(5, 45)), 6, SamplingParams(temperature=0.0, num_logprobs=5)),
    TrialRequest((9, 8, 7), 8, SamplingParams(temperature=0.0, num_logprobs=5), chunk_tokens=2),
]
# Heads as large as the smallest that the kernels rotate; with them every family is wholly fused.
LONG_FACTORS = {
    "type": "longrope",
    "factor": 4.0,
    "short_factor": [1.0 + 0.1 * i for i in range(24)],
    "long_factor": [1.0 + i for i in range(24)],
}
FAMILY_CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 64},
    "mixtral": {"head_dim": 64},
    "qwen2": {"head_dim": 64},
    "qwen3": {"head_dim": 64},
    "qwen3_moe": {"head_dim": 64},
    "gemma2": {"head_dim": 64},
    "gemma3": {"head_dim": 64},
    # A part of each head is rotated: 48 numbers of 64.
    "phi3": {"hidden_size": 256, "num_attention_heads": 4, "rope_scaling": LONG_FACTORS},
}


def config_of(family: str) -> ModelConfig:
    return family_config(family, **FAMILY_CHANGES[family])


def fused(model: Decoder, calls: FakeFlashInferRowCalls | None = None) -> Decoder:
    rows = FlashInferRows(calls or FakeFlashInferRowCalls(), model.dtype)
    return Decoder(model.config, with_row_kernels(model.config, model.weights, rows))


def assert_near(actual: Tensor, expected: Tensor, bound: float) -> None:
    """Within that share of a number, or of one."""
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def random_rows(num_rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator).to(dtype)


def model_of(family: str, dtype: torch.dtype, computed_in: torch.dtype | None = None) -> Decoder:
    """Random weights of that dtype, by torch."""
    torch.set_num_threads(1)
    config = config_of(family)
    sources = {Path("random") / "weights": RandomTensors(config, dtype, CPU, seed=7)}
    return Decoder(config, read_decoder_weights(config, sources, computed_in or dtype, CPU))


def logits_of(model: Decoder) -> Tensor:
    """[num_tokens, vocab_size] of two prompts that are computed at once."""
    config = model.config
    batch = scattered_batch([0, 0], [19, 6], BLOCK_SIZE, NUM_BLOCKS, seed=1)
    layout = KvLayout(
        config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, "float32"
    )
    shape = AttentionShape(layout, config.num_heads, config.layer_attention, CPU, model.dtype)
    step = choose_attention(shape, "torch").begin(batch, KvPool(layout, NUM_BLOCKS))
    positions = torch.cat((torch.arange(19), torch.arange(6)))
    tokens = torch.arange(5, 30)
    with torch.inference_mode():
        return model.logits(model.hidden(tokens, positions, step)[:25])


def distance(one: Tensor, other: Tensor) -> float:
    """Of a token's logits, in the middle of all tokens: some few are very sensitive."""
    return float((one - other).square().mean(-1).sqrt().median())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILY_CHANGES)
def test_a_model_differs_from_torchs_no_more_than_that_from_float32(
    family: str, dtype: torch.dtype
) -> None:
    exact = logits_of(model_of(family, dtype, torch.float32))
    model, calls = model_of(family, dtype), FakeFlashInferRowCalls()
    by_torch, by_rows = logits_of(model), logits_of(fused(model, calls))
    rounded = distance(by_torch, exact)
    assert distance(by_rows, exact) < 1.75 * rounded
    assert distance(by_rows, by_torch) < 2.0 * rounded
    is_gemma = model.config.is_gemma
    assert set(calls.num_calls) >= (
        {"gemma_rmsnorm", "gemma_fused_add_rmsnorm", "gelu_tanh_and_mul", "apply_rope"}
        if is_gemma
        else {"rmsnorm", "fused_add_rmsnorm", "silu_and_mul", "apply_rope"}
    )


def test_a_layer_needs_few_calls() -> None:
    model, calls = model_of("llama", torch.bfloat16), FakeFlashInferRowCalls()
    logits_of(fused(model, calls))
    num_layers = model.config.num_layers
    assert calls.num_calls == {
        # Before the first layer and before the logits.
        "rmsnorm": 2,
        "fused_add_rmsnorm": 2 * num_layers - 1,
        "silu_and_mul": num_layers,
        "apply_rope": num_layers,
    }


def test_a_model_of_awkward_sizes_is_torchs_where_kernels_decline() -> None:
    config = family_config(
        "qwen3", head_dim=20, hidden_size=60, intermediate_size=172, num_hidden_layers=2
    )
    model, calls = make_random_decoder(config, torch.bfloat16, CPU), FakeFlashInferRowCalls()
    both = logits_of(model), logits_of(fused(model, calls))
    assert torch.equal(*both)
    assert not calls.num_calls


def test_the_arithmetic_tells_them_apart() -> None:
    model = model_of("llama", torch.bfloat16)
    assert model.arithmetic.endswith("-torch")
    assert fused(model).arithmetic.endswith("-flashinfer-rows-fake")
    assert FlashInferRows(FakeFlashInferRowCalls(), torch.float16, "cute").name.endswith("-cute")


def test_the_model_that_rows_are_taken_from_stays_as_it_is() -> None:
    model, calls = model_of("mixtral", torch.bfloat16), FakeFlashInferRowCalls()
    before = logits_of(model)
    fused(model, calls)
    assert torch.equal(logits_of(model), before)
    assert not calls.num_calls


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_recorded_layers_give_the_same_bits(family: str) -> None:
    model = fused(model_of(family, torch.bfloat16))
    expected = run(model)
    model.capture(12, FakeCapture())
    assert run(model) == expected


def run(model: Decoder) -> list[TrialResult]:
    config = model.config
    layout = KvLayout(
        config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype_name(model.dtype)
    )
    shape = AttentionShape(layout, config.num_heads, config.layer_attention, CPU, model.dtype)
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), 4, choose_attention(shape, "torch"))
    return run_together(runner, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)


def norm_of(width: int, dtype: torch.dtype, is_offset: bool) -> RmsNorm:
    weight = 1.0 + 0.3 * random_rows(1, width, torch.float32, 3)[0]
    if is_offset:
        return RmsNorm((weight - 1.0).to(dtype).float() + 1.0, 1e-6)
    return RmsNorm(weight.to(dtype), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_offset", [False, True])
def test_a_norm_is_within_two_roundings(dtype: torch.dtype, is_offset: bool) -> None:
    norm = norm_of(96, dtype, is_offset)
    kernels = FlashInferRows(FakeFlashInferRowCalls(), dtype).norm(norm)
    assert kernels is not None
    rows, added = (random_rows(17, 96, dtype, seed) for seed in (1, 2))
    bound = 2 * ROUNDING[dtype]
    assert_near(kernels(rows), norm(rows), bound)
    heads = rows.view(17, 4, 24)[:, 1:3]
    head_norm = norm_of(24, dtype, is_offset)
    fused_heads = FlashInferRows(FakeFlashInferRowCalls(), dtype).norm(head_norm)
    assert fused_heads is not None
    assert_near(fused_heads(heads), head_norm(heads), bound)
    total, other = rows.clone(), rows.clone()
    expected = norm.of_sum(total, added)
    assert_near(kernels.of_sum(other, added), expected, bound)
    # What goes on to the next layer has equal bits.
    assert torch.equal(total, other)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_rows_are_no_launch(num_rows: int) -> None:
    calls = FakeFlashInferRowCalls()
    rows = FlashInferRows(calls, torch.bfloat16)
    norm, gated = rows.norm(norm_of(16, torch.bfloat16, is_offset=False)), rows.gated("silu", 16)
    assert norm is not None
    assert gated is not None
    empty = torch.zeros(num_rows, 32, dtype=torch.bfloat16)
    assert gated(empty).shape == (num_rows, 16)
    assert norm(empty[:, :16].contiguous()).shape == (num_rows, 16)
    assert norm.of_sum(empty[:, :16].clone(), empty[:, 16:].clone()).shape == (num_rows, 16)
    assert bool(calls.num_calls) == bool(num_rows)


def test_a_weight_that_the_rows_dtype_does_not_hold_is_left_to_torch() -> None:
    norm = RmsNorm(torch.linspace(0.3, 1.7, 16), 1e-6)
    assert FlashInferRows(FakeFlashInferRowCalls(), torch.bfloat16).norm(norm) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_is_within_a_rounding(dtype: torch.dtype, activation: Activation) -> None:
    rows = 3 * random_rows(9, 2 * 40, dtype, 5)
    kernels = FlashInferRows(FakeFlashInferRowCalls(), dtype).gated(activation, 40)
    assert kernels is not None
    bound = 2 * ROUNDING[dtype]
    assert_near(kernels(rows), choose_gated(activation)(rows), bound)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_rotated_heads_are_torchs_rounded(family: str) -> None:
    config, dtype = config_of(family), torch.bfloat16
    table = build_rope_table(config.layer_ropes[0], 64, CPU)
    counts = HeadCounts(config.num_heads, config.num_kv_heads, config.head_dim)
    positions = torch.tensor([0, 3, 3, 63, 17])
    width = (counts.num_heads + 2 * counts.num_kv_heads) * counts.head_dim
    rows, layer = random_rows(5, width, dtype, 8), model_of(family, dtype).weights.layers[0]
    expected = StepHeads(counts, table, positions).of(rows, layer)
    turn = FlashInferRows(FakeFlashInferRowCalls(), dtype).turn(table, counts.head_dim)
    actual = TurnedHeads(counts, turn, positions).of(rows.clone(), layer)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == dtype
        assert_near(mine.float(), theirs, ROUNDING[dtype])


def test_row_kernels_are_torchs_where_no_gpu_is() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_row_kernels("auto", dtype, CPU) is None
        assert choose_row_kernels("torch", dtype, CPU) is None
    assert choose_row_kernels("auto", torch.float32, torch.device("cuda")) is None
    with pytest.raises(RowKernelsUnavailable, match="CUDA device; choose --row-kernels auto"):
        choose_row_kernels("flashinfer", torch.bfloat16, CPU)
