"""Whole models in float16, and over KV in fewer bits than they compute in."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from engine.bundled import bundled_model_path
from engine.kv_dtype import KV_DTYPES
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_any_model, load_model
from engine.model_folder import open_model_folder
from engine.model_folder_errors import UnsupportedModelOption
from engine.model_runner import ModelRunner
from engine.models.model import Model
from engine.other.testing import make_other_model_folder
from engine.runner import LogitsNotFinite
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams
from worker.engine_fit import resolve_dtype

BLOCK_SIZE, NUM_BLOCKS = 16, 64
READING = SamplingParams(temperature=0.0, num_logprobs=3, num_prompt_logprobs=1)
PROMPT = tuple(3 + i * 37 % 300 for i in range(61))
TEXT = "This module provides a way of using operating system dependent functionality."


def run(model: Model, kv_dtype: str, requests: Sequence[TrialRequest]) -> list[TrialResult]:
    shape = model.config
    layout = KvLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE, kv_dtype)
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), 8)
    return run_together(runner, requests, BLOCK_SIZE, NUM_BLOCKS)


def read(model: Model, kv_dtype: str, token_ids: Sequence[int]) -> torch.Tensor:
    """Logprobs of all tokens but the first."""
    (result,) = run(model, kv_dtype, [TrialRequest(tuple(token_ids), 1, READING)])
    return torch.tensor([logprob for part in result.prompt_logprobs for logprob in part.logprobs])


def test_a_trained_model_reads_nearly_the_same_over_any_kv() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(bundled_model_path() / "tokenizer.json"))
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    exact = read(load_model(bundled_model_path(), "float32"), "float32", token_ids)
    # Mean differences of logprobs. Rounded to 8, 11 and 4 bits.
    bounds = {"float32": 0.1, "bfloat16": 0.1, "float16": 0.1, "fp8_e4m3": 0.5}
    for dtype in ("float32", "bfloat16", "float16"):
        model = load_model(bundled_model_path(), dtype)
        for kv_dtype in KV_DTYPES:
            off = (read(model, kv_dtype, token_ids) - exact).abs().mean()
            assert off < bounds[kv_dtype], (dtype, kv_dtype)
            assert (off == 0) == (dtype == kv_dtype == "float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_in_float16_what_it_computes_in_float32(
    tmp_path: Path, family: str
) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, family, seed=4)
    exact = read(load_model(tmp_path, "float32"), "float32", PROMPT)
    rounded = {
        dtype: (read(load_model(tmp_path, dtype), dtype, PROMPT) - exact).abs().mean()
        for dtype in ("float16", "bfloat16")
    }
    # Three bits more than bfloat16 has.
    assert 0 < rounded["float16"] < rounded["bfloat16"] / 2


@pytest.mark.parametrize("kv_dtype", ["float16", "fp8_e4m3", "float32"])
@pytest.mark.parametrize("name", ["mlp.up_proj", "self_attn.k_proj", "self_attn.v_proj"])
def test_numbers_too_large_for_float16_name_their_slots_whatever_the_kv_is(
    tmp_path: Path, name: str, kv_dtype: str
) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors[f"model.layers.0.{name}.weight"]
    # Weights are in the range, their products with a row are not.
    weight.mul_(6e4 / float(weight.abs().max()))
    save_file(tensors, tmp_path / "model.safetensors")
    assert read(load_model(tmp_path, "float32"), "float32", PROMPT).isfinite().all()
    model = load_model(tmp_path, "float16")
    with pytest.raises(LogitsNotFinite) as caught:
        run(model, kv_dtype, [TrialRequest(PROMPT, 4)])
    assert caught.value.slots == (0,)


def test_a_family_of_the_library_is_computed_in_float16(tmp_path: Path) -> None:
    folder = open_model_folder(make_other_model_folder(tmp_path, "olmo2"))
    model = load_any_model(folder, "float16")
    assert model.dtype == torch.float16
    requests = [TrialRequest(PROMPT, 9, READING), TrialRequest(PROMPT[:5], 14)]
    for kv_dtype in ("float16", "fp8_e4m3"):
        alone = [run(model, kv_dtype, [request])[0] for request in requests]
        assert run(model, kv_dtype, requests) == alone


def test_a_family_of_the_library_that_float16_cannot_hold_is_refused_at_start(
    tmp_path: Path,
) -> None:
    folder = make_other_model_folder(tmp_path, "olmo2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"].mul_(1e9)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelOption, match=r"too large for float16.*--dtype bfloat16"):
        load_any_model(open_model_folder(folder), "float16")


@pytest.mark.parametrize(
    ("wanted", "saved", "device", "dtype"),
    [
        ("auto", "float16", "cuda", "float16"),
        ("auto", "float16", "cpu", "float32"),
        ("auto", "bfloat16", "cuda", "bfloat16"),
        ("auto", "bfloat16", "cpu", "bfloat16"),
        ("auto", "float32", "cuda", "float32"),
        ("float16", "bfloat16", "cpu", "float16"),
    ],
)
def test_auto_takes_the_folders_float16_on_a_gpu_only(
    wanted: str, saved: str, device: str, dtype: str
) -> None:
    assert resolve_dtype(wanted, saved, device) == dtype
