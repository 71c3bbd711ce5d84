from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading import DeviceUnavailable, load_model, weights_fingerprint
from engine.model_folder_errors import InvalidWeightFile
from engine.models.mlp import DenseMlp
from engine.testing import family_fields, make_random_model_folder
from engine.weight_check import TensorMissing, TensorShapeMismatch
from engine.weights import load_decoder_weights

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path / "model", "qwen2")
    return tmp_path / "model"


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of the single weight file, or drop those given as None."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | {
        k.replace("__", "."): v for k, v in changes.items() if v is not None
    }
    for name in (k.replace("__", ".") for k, v in changes.items() if v is None):
        del tensors[name]
    save_file(tensors, file)


def test_shards_and_one_file_load_the_same_model(tmp_path: Path) -> None:
    for name, num_shards in (("one", 1), ("many", 3)):
        make_random_model_folder(tmp_path / name, "llama", seed=4, num_shards=num_shards)
    one, many = (load_model(tmp_path / name).weights for name in ("one", "many"))
    assert torch.equal(one.lm_head.dense(), many.lm_head.dense())
    for left, right in zip(one.layers, many.layers, strict=True):
        assert torch.equal(left.qkv.dense(), right.qkv.dense())
        assert isinstance(left.mlp, DenseMlp)
        assert isinstance(right.mlp, DenseMlp)
        assert torch.equal(left.mlp.gate_up.dense(), right.mlp.gate_up.dense())


def test_matrices_are_fused_in_the_documented_order(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    layer = load_model(folder).weights.layers[1]
    prefix = "model.layers.1."
    queries, keys, values = (
        tensors[f"{prefix}self_attn.{name}_proj.weight"] for name in ("q", "k", "v")
    )
    assert torch.equal(layer.qkv.dense(), torch.cat((queries, keys, values)))
    assert layer.qkv.bias is not None
    assert torch.equal(layer.qkv.bias[: len(queries)], tensors[f"{prefix}self_attn.q_proj.bias"])
    gate, up = (tensors[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert isinstance(layer.mlp, DenseMlp)
    assert torch.equal(layer.mlp.gate_up.dense(), torch.cat((gate, up)))
    assert layer.attention_out.bias is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_has_the_dtype_that_was_asked_for(folder: Path, dtype: str) -> None:
    model = load_model(folder, dtype)
    assert model.dtype == getattr(torch, dtype)
    assert model.weights.layers[0].attention_out.dense().dtype == model.dtype


def test_weights_saved_in_half_precision_load_in_float32(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    assert load_model(folder, "float32").dtype == torch.float32


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__down_proj__weight=None)
    with pytest.raises(TensorMissing, match=r"layers\.1\.mlp\.down_proj\.weight") as caught:
        load_model(folder)
    assert caught.value.path == folder


def test_a_tensor_of_another_shape_is_named_with_its_file(folder: Path) -> None:
    rewrite(folder, model__norm__weight=torch.ones(63))
    with pytest.raises(TensorShapeMismatch, match=r"\[63\].*\[64\]") as caught:
        load_model(folder)
    assert caught.value.path == folder / "model.safetensors"


def test_a_file_that_is_cut_off_after_the_check_of_its_folder_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    config = make_random_model_folder(folder, "qwen2")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidWeightFile, match=r"model\.safetensors"):
        load_decoder_weights(config, [file], torch.float32, CPU)


def test_a_tied_model_needs_no_output_matrix(tmp_path: Path) -> None:
    fields = family_fields("llama", tie_word_embeddings=True)
    make_random_model_folder(tmp_path, fields=fields)
    weights = load_model(tmp_path).weights
    assert torch.equal(weights.lm_head.dense(), weights.embedding)


def test_unknown_dtypes_and_devices_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="float64"):
        load_model(folder, "float64")
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(DeviceUnavailable, match="--device cpu"):
            load_model(folder, device=device)


def test_the_fingerprint_is_stable_and_sees_every_kind_of_change(
    folder: Path, tmp_path: Path
) -> None:
    original = weights_fingerprint(folder)
    make_random_model_folder(tmp_path / "copy", "qwen2")
    assert weights_fingerprint(tmp_path / "copy") == original
    make_random_model_folder(tmp_path / "other", "qwen2", seed=1)
    assert weights_fingerprint(tmp_path / "other") != original
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert weights_fingerprint(folder) != original
