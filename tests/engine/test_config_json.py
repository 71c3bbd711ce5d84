"""Configurations as transformers writes them are read; what cannot be is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from engine.config_json import GenerationDefaults, read_model_config
from engine.model_config import ModelConfig
from engine.model_folder_errors import (
    InvalidModelField,
    InvalidModelJson,
    UnsupportedArchitecture,
    UnsupportedModelOption,
)
from engine.rope_config import LinearRopeScaling, Llama3RopeScaling, Rope

# The spelling of transformers 4, with everything left out that may be.
FIELDS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES = {key: value for key, value in FIELDS.items() if key != "architectures"}


def write_config(folder: Path, fields: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def read(folder: Path, **fields: Any) -> tuple[ModelConfig, GenerationDefaults]:
    config, generation = read_model_config(write_config(folder, {**FIELDS, **fields}))
    assert isinstance(config, ModelConfig)
    return config, generation


def test_absent_fields_have_the_values_that_transformers_gives_them(tmp_path: Path) -> None:
    config, generation = read(tmp_path)
    assert config == ModelConfig(
        architecture="llama",
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope=Rope(theta=10_000.0, rotary_dim=8),
        max_position_embeddings=128,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        torch_dtype="float32",
        eos_token_ids=(2,),
        bos_token_id=1,
    )
    assert generation == GenerationDefaults(None, None, None)


@pytest.mark.parametrize(
    ("written", "architecture"),
    [
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
                     num_key_value_heads=2, head_dim=16, attention_bias=True, mlp_bias=True,
                     eos_token_id=[2, 3], tie_word_embeddings=True, dtype="bfloat16"), "llama"),
        (Qwen2Config(**SIZES, num_key_value_heads=2, eos_token_id=2, rope_theta=1e6), "qwen2"),
    ],
)  # fmt: skip
def test_a_config_written_by_transformers_is_read_as_transformers_reads_it(
    tmp_path: Path, written: PretrainedConfig, architecture: str
) -> None:
    name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]
    written.architectures = [name]
    written.save_pretrained(tmp_path)
    config, _ = read_model_config(tmp_path)
    assert isinstance(config, ModelConfig)
    is_llama = architecture == "llama"
    assert config.architecture == architecture
    assert config.num_kv_heads == written.num_key_value_heads
    assert config.head_dim == (16 if is_llama else 8)
    assert config.rope.theta == written.rope_parameters["rope_theta"]
    assert config.rope.scaling == (Llama3RopeScaling(8.0, 1.0, 4.0, 64) if is_llama else None)
    assert config.eos_token_ids == ((2, 3) if is_llama else (2,))
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, is_llama, is_llama)
    assert config.tie_word_embeddings == is_llama
    assert config.torch_dtype == ("bfloat16" if is_llama else "float32")


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"torch_dtype": "bfloat16"}, "torch_dtype", "bfloat16"),
        ({"dtype": "torch.float16"}, "torch_dtype", "float16"),
        ({"eos_token_id": 7}, "eos_token_ids", (7,)),
        ({"eos_token_id": [7, 8]}, "eos_token_ids", (7, 8)),
        ({"rope_theta": 5e5, "rope_scaling": None}, "rope", Rope(5e5, 8)),
        ({"rope_theta": 1, "rope_parameters": {"rope_theta": 2.0}}, "rope", Rope(2.0, 8)),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            "rope",
            Rope(10_000.0, 8, LinearRopeScaling(2)),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            "rope",
            Rope(10_000.0, 8, Llama3RopeScaling(8.0, 1.0, 4.0, 64)),
        ),
        ({"head_dim": None, "num_key_value_heads": None}, "head_dim", 8),
    ],
)
def test_every_spelling_in_use_is_read(
    tmp_path: Path, fields: dict[str, Any], field: str, value: object
) -> None:
    config, _ = read(tmp_path, **fields)
    assert getattr(config, field) == value


def test_generation_config_decides_where_a_sequence_ends_and_how_it_samples(
    tmp_path: Path,
) -> None:
    write_config(tmp_path, {**FIELDS, "eos_token_id": 1})
    generation = {"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 20, "top_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config, defaults = read_model_config(tmp_path)
    assert config.eos_token_ids == (5, 6)
    assert defaults == GenerationDefaults(0.6, 20, 0.9)
    more = {"min_p": 0.05, "repetition_penalty": 1.1, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(more))
    assert read_model_config(tmp_path)[1] == GenerationDefaults(None, None, None, 0.05, 1.1)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    assert read_model_config(tmp_path)[1] == GenerationDefaults(0.0, None, None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 34}, "num_attention_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"architectures": []}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"eos_token_id": 400}, "eos_token_id"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "rope_scaling.factor"),
    ],
)
def test_a_field_that_cannot_be_is_named(
    tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidModelField, match=r"config\.json.*correct the file") as found:
        read(tmp_path, **fields)
    assert found.value.field.startswith(field)


@pytest.mark.parametrize("field", SIZES)
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != field}
    with pytest.raises(InvalidModelField, match="required") as found:
        read_model_config(write_config(tmp_path, fields))
    assert found.value.field == field


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "T5ForConditionalGeneration", "Qwen2VLForConditionalGeneration"]
)
def test_an_unknown_architecture_is_told_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"use a model of one of: .*LlamaForCausalLM"):
        read(tmp_path, architectures=[name])


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"compression_config": {}}, "compression_config"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types 'chunked_attention'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ],
)
def test_an_option_that_would_be_computed_wrongly_is_refused(
    tmp_path: Path, fields: dict[str, Any], option: str
) -> None:
    with pytest.raises(UnsupportedModelOption, match="use") as found:
        read(tmp_path, **fields)
    assert found.value.option.startswith(option)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_is_not_a_json_object_is_named(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (write_config(tmp_path, FIELDS) / name).write_bytes(content)
    with pytest.raises(InvalidModelJson, match=rf"{name}.*copy the file again"):
        read_model_config(tmp_path)
