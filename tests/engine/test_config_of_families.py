"""What each family's config.json means, and what of it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from engine.config_json import read_model_config
from engine.model_config import LayerAttention, MixtureConfig
from engine.model_folder_errors import InvalidModelField, UnsupportedModelOption
from engine.testing import FAMILIES, family_config, family_fields

FULL, SLIDING = "full_attention", "sliding_attention"


def windows(family: str, **changes: Any) -> list[int | None]:
    config = family_config(family, **changes)
    return [layer.sliding_window for layer in config.layer_attention]


def read(folder: Path, fields: dict[str, Any]) -> Any:
    (folder / "config.json").write_text(json.dumps(fields))
    return read_model_config(folder)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_saved_anew_by_transformers_means_the_same(family: str, tmp_path: Path) -> None:
    fields = family_fields(family)
    saved = AutoConfig.for_model(**fields)
    saved.save_pretrained(tmp_path)
    assert read(tmp_path, json.loads((tmp_path / "config.json").read_text())) == family_config(
        family
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_of_a_family_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    needed = {
        "architectures": FAMILIES[family]["architectures"],
        "vocab_size": 40_000,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 64 if family.startswith("qwen") else 8,
        "max_position_embeddings": 8192,
    }
    theirs = AutoConfig.for_model(FAMILIES[family]["model_type"], **needed)
    ours = read(tmp_path, needed)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 128 // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    rope = theirs.rope_parameters
    assert ours.rope.theta == rope.get(FULL, rope)["rope_theta"]
    eos = theirs.eos_token_id
    assert ours.eos_token_ids == (() if eos is None else (eos,))
    assert ours.bos_token_id == theirs.bos_token_id
    types = getattr(theirs, "layer_types", None)
    if types is None:
        types = [SLIDING if theirs.to_dict().get("sliding_window") else FULL] * 7
    expected = [theirs.sliding_window if kind == SLIDING else None for kind in types]
    assert [layer.sliding_window for layer in ours.layer_attention] == expected
    if ours.mixture:
        assert ours.mixture.num_experts == theirs.num_local_experts
        assert ours.mixture.num_experts_per_token == theirs.num_experts_per_tok
    if ours.is_gemma:
        assert ours.attention_scale == theirs.query_pre_attn_scalar**-0.5
        assert ours.attention_softcap == theirs.attn_logit_softcapping
        assert ours.logit_softcap == theirs.final_logit_softcapping


def test_a_window_lies_over_the_layers_that_the_family_says() -> None:
    assert windows("mistral") == [24] * 3
    assert windows("mistral", sliding_window=None) == [None] * 3
    assert windows("mixtral", sliding_window=100) == [100] * 3
    assert windows("gemma2") == [24, None, 24, None]
    assert windows("gemma3") == [24, 24, None, 24]
    assert windows("gemma3", layer_types=[FULL, SLIDING, FULL, FULL]) == [None, 24, None, None]
    qwen = {"use_sliding_window": True, "sliding_window": 24}
    assert windows("qwen3", **qwen, max_window_layers=2) == [None, None, 24]
    assert windows("qwen3", **qwen, layer_types=[SLIDING, FULL, FULL]) == [24, None, None]
    assert windows("qwen3_moe", **qwen) == [24] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 24, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1},
        {"sliding_window": 24, "layer_types": [FULL, FULL]},
    ],
)
def test_a_window_without_effect_is_none(changes: dict[str, Any]) -> None:
    assert windows("qwen2", **changes) == [None, None]


def test_gemma_scales_and_caps_scores() -> None:
    assert family_config("gemma2").layer_attention[0] == LayerAttention(24**-0.5, 24, 15.0)
    assert family_config("gemma3").layer_attention[2] == LayerAttention(24**-0.5, None, None)
    assert family_config("llama").layer_attention[0] == LayerAttention(16**-0.5)


def test_experts_are_in_the_layers_that_the_family_says() -> None:
    changes: dict[str, Any] = {
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "norm_topk_prob": False,
    }
    mixture = family_config("qwen3_moe", **changes).mixture
    assert mixture == MixtureConfig(6, 3, 40, False, layers=(1,))
    mixture = family_config("mixtral").mixture
    assert mixture == MixtureConfig(5, 2, 96, True, layers=(0, 1, 2))


def test_the_text_part_of_a_vision_model_is_read_with_its_defaults(tmp_path: Path) -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "sliding_window": 32,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    fields = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": {"hidden_size": 1152},
    }
    config = read(tmp_path, fields)
    assert (config.architecture, config.num_heads, config.num_kv_heads) == ("gemma3", 8, 4)
    assert (config.head_dim, config.vocab_size) == (256, 262_208)
    assert (config.eos_token_ids, config.torch_dtype) == ((1, 106), "bfloat16")
    assert config.sliding_layers == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("family", "changes", "option"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma2", {"hidden_activation": "gelu"}, "activation 'gelu'"),
        ("gemma3", {"layer_types": [FULL, "linear_attention"] * 2}, "layer_types 'linear_attent"),
        ("mistral", {"layer_types": [FULL, SLIDING, FULL]}, "layer_types"),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ],
)
def test_an_option_of_a_family_that_is_not_computed_is_refused(
    family: str, changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(UnsupportedModelOption) as refused:
        family_config(family, **changes)
    assert refused.value.option.startswith(option)


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("qwen3", {"layer_types": [SLIDING, FULL, FULL]}, "sliding_window"),
        ("gemma2", {"layer_types": [SLIDING, FULL]}, "layer_types"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ],
)
def test_a_field_of_a_family_that_cannot_be_is_named(
    family: str, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidModelField) as refused:
        family_config(family, **changes)
    assert refused.value.field == field
