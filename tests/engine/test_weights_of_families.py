"""Files as transformers writes them for each family, and weights that would be misread."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine.loading import load_model
from engine.model_folder_errors import UnsupportedModelOption
from engine.models.mlp import DenseMlp, MixtureMlp
from engine.testing import FAMILIES, make_random_model_folder
from engine.weight_check import TensorMissing

WEIGHTS = "model.safetensors"


def assert_equal_weights(one: Path, other: Path) -> None:
    left, right = load_model(one).weights, load_model(other).weights
    assert torch.equal(left.embedding, right.embedding)
    assert torch.equal(left.lm_head.dense(), right.lm_head.dense())
    for mine, theirs in zip(left.layer_linears, right.layer_linears, strict=True):
        assert torch.equal(mine.dense(), theirs.dense())
    for layer, its in zip(left.layers, right.layers, strict=True):
        assert torch.equal(layer.mlp_norm.weight, its.mlp_norm.weight)
        assert (layer.query_norm is None) == (its.query_norm is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_what_it_was_given(family: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path / "ours", family, seed=2)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    saved: Any = tmp_path / "theirs"
    model.save_pretrained(saved)
    (saved / "tokenizer.json").write_bytes((tmp_path / "ours" / "tokenizer.json").read_bytes())
    assert_equal_weights(tmp_path / "ours", saved)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_vision_model_is_found_by_its_names(prefix: str, tmp_path: Path) -> None:
    make_random_model_folder(tmp_path / "text", "gemma3")
    make_random_model_folder(tmp_path / "vision", "gemma3")
    file = tmp_path / "vision" / WEIGHTS
    tensors = {prefix + name.removeprefix("model."): t for name, t in load_file(file).items()}
    save_file({**tensors, "vision_tower.embeddings.weight": torch.ones(3)}, file)
    text = json.loads((tmp_path / "vision" / "config.json").read_text())
    fields = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "vision" / "config.json").write_text(json.dumps(fields))
    assert_equal_weights(tmp_path / "text", tmp_path / "vision")


def test_the_norms_of_gemma_are_stored_less_one(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, "gemma3")
    stored = load_file(tmp_path / WEIGHTS)["model.layers.0.self_attn.q_norm.weight"]
    layer = load_model(tmp_path, "bfloat16").weights.layers[0]
    assert layer.query_norm is not None
    # Exact, though the model computes in bfloat16.
    assert torch.equal(layer.query_norm.weight, stored + 1.0)


def test_only_some_layers_have_experts(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, "qwen3_moe")
    mlps = [layer.mlp for layer in load_model(tmp_path).weights.layers]
    assert [type(mlp) for mlp in mlps] == [MixtureMlp, DenseMlp, MixtureMlp, MixtureMlp]


@pytest.mark.parametrize(
    ("suffix", "message"), [("qweight", "quantised tensor"), ("weight_packed", "quantised tensor")]
)
def test_a_packed_matrix_is_refused_as_quantised(suffix: str, message: str, tmp_path: Path) -> None:
    make_random_model_folder(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.1.mlp.up_proj."
    tensors[name + suffix] = tensors.pop(name + "weight").to(torch.int32)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(UnsupportedModelOption, match=f"{message}.*unquantised"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_matrix_of_small_numbers_is_refused_as_quantised(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    make_random_model_folder(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(UnsupportedModelOption, match=r"q_proj\.weight.*unquantised"):
        load_model(tmp_path)


def test_a_bias_without_its_matrix_is_a_missing_tensor(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, "qwen2")
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(TensorMissing, match=r"q_proj\.weight"):
        load_model(tmp_path)
