"""Rotary frequencies are those of transformers, for every scaling and every spelling of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.families_testing import family_fields
from engine.model_folder_errors import InvalidModelField, UnsupportedModelOption
from engine.model_folder_testing import make_random_model_folder
from engine.models.rope import build_rope_table
from engine.rope_config import Rope
from engine.testing import family_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.0 + 2.0 * i for i in range(8)],
}
SIZES = {"head_dim": 16, "max_position_embeddings": 512}
# name -> (fields of a Llama, the length that is served, and at which transformers is asked)
SCALINGS: dict[str, tuple[dict[str, Any], int]] = {
    "none": ({}, 512),
    "other base": ({"rope_theta": 5e5}, 512),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 512),
    "dynamic, not stretched": ({"rope_scaling": {"rope_type": "dynamic", "factor": 3.7}}, 512),
    "dynamic, by some": ({"rope_scaling": {"rope_type": "dynamic", "factor": 3.7}}, 1000),
    "dynamic, whole": ({"rope_scaling": {"rope_type": "dynamic", "factor": 3.7}}, 1894),
    "linear, whole": ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 1280),
    "yarn, whole": ({"rope_scaling": YARN | {"original_max_position_embeddings": 512}}, 2048),
    "longrope, within the original length": (
        {"rope_scaling": LONG | {"original_max_position_embeddings": 64}},
        64,
    ),
    "llama3": ({"rope_scaling": LLAMA3}, 512),
    "llama3, newer": ({"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 512),
    "llama3, original length beside": (
        {"original_max_position_embeddings": 96, "rope_scaling": LLAMA3},
        512,
    ),
    "yarn": ({"rope_scaling": YARN}, 512),
    "yarn, no original length": ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, 512),
    "yarn, attention factor": ({"rope_scaling": YARN | {"attention_factor": 0.7}}, 512),
    "yarn, mscale": ({"rope_scaling": YARN | {"mscale": 0.9, "mscale_all_dim": 0.6}}, 512),
    "yarn, only mscale": ({"rope_scaling": YARN | {"mscale": 0.9}}, 512),
    "yarn, betas": (
        {"rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 0.5, "truncate": False}},
        512,
    ),
    "longrope, stretched": (
        {"rope_scaling": LONG | {"original_max_position_embeddings": 64}},
        512,
    ),
    "longrope, stretched, factor": (
        {"rope_scaling": LONG | {"original_max_position_embeddings": 64, "factor": 6.0}},
        65,
    ),
    "longrope, not stretched": (
        {"rope_scaling": LONG | {"original_max_position_embeddings": 512}},
        512,
    ),
    "longrope, attention factor": (
        {"rope_scaling": LONG | {"original_max_position_embeddings": 512, "attention_factor": 1.3}},
        3,
    ),
}


def table_of(rope: Rope, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine as transformers returns them, [num_positions, rotary_dim]."""
    table = build_rope_table(rope, num_positions, torch.device("cpu"))
    cos, signed_sin = table.at(torch.arange(num_positions))
    half = rope.rotary_dim // 2
    sin = torch.cat((-signed_sin[:, 0, :half], signed_sin[:, 0, half:]), dim=1)
    return cos[:, 0], sin


def tables_of_transformers(fields: dict[str, Any], length: int, *kind: str) -> Any:
    config = AutoConfig.for_model(**fields)
    # A model without weights: only what it rotates with is asked for.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    rotary = type(model.model.rotary_emb)(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None], *kind)
    return cos[0], sin[0]


def assert_equal_tables(rope: Rope, expected: Any) -> None:
    for ours, theirs in zip(table_of(rope, len(expected[0])), expected, strict=True):
        # The last bits of a frequency, times the position.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaling_rotates_as_in_transformers(name: str) -> None:
    changes, length = SCALINGS[name]
    fields = family_fields("llama", **SIZES, **changes)
    config = family_config("llama", max_model_len=length, **SIZES, **changes)
    assert config.max_position_embeddings >= length
    assert_equal_tables(config.rope, tables_of_transformers(fields, length))


@pytest.mark.parametrize("spelling", ["longrope", "yarn"])
@pytest.mark.parametrize("original", [32, 512])
def test_phi3_rotates_a_part_of_each_head_by_factors_of_its_own(
    spelling: str, original: int
) -> None:
    changes: dict[str, Any] = {
        "original_max_position_embeddings": original,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {
            "type": spelling,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 3.0, 5.0, 9.0],
        },
    }
    rope = family_config("phi3", **changes).rope
    assert rope.rotary_dim == 8
    assert_equal_tables(rope, tables_of_transformers(family_fields("phi3", **changes), 512))


def test_the_oldest_spelling_of_longrope_is_read() -> None:
    # transformers itself no longer loads it.
    scaling = dict(family_fields("phi3")["rope_scaling"])
    renamed = family_config("phi3", rope_scaling=scaling | {"type": "su"})
    assert renamed == family_config("phi3", rope_scaling=scaling | {"type": "longrope"})


NESTED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e5},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": None, "rope_theta": 3e5},
        {"rope_scaling": None, "rope_parameters": NESTED},
        {"rope_scaling": None, "rope_parameters": {"full_attention": NESTED["full_attention"]}},
    ],
)
def test_gemma3_has_a_rotation_for_each_kind_of_layer(changes: dict[str, Any]) -> None:
    fields = family_fields("gemma3", **changes)
    config = family_config("gemma3", **changes)
    assert config.sliding_rope is not None
    assert [rope == config.rope for rope in config.layer_ropes] == [False, False, True, False]
    expected = tables_of_transformers(dict(fields), 512, "full_attention")
    assert_equal_tables(config.rope, expected)
    expected = tables_of_transformers(dict(fields), 512, "sliding_attention")
    assert_equal_tables(config.sliding_rope, expected)


@pytest.mark.parametrize(
    ("family", "changes", "option"),
    [
        ("llama", {"rope_scaling": {"type": "proportional"}}, "rope type 'proportional'"),
        ("llama", {"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 9.0}}, "alpha"),
        ("qwen2", {"rope_scaling": {"mrope_section": [2, 3, 3]}}, "mrope_section"),
        ("phi3", {"rope_scaling": LONG | {"short_mscale": 1.2}}, "short_mscale"),
        ("phi3", {"rope_scaling": LONG | {"long_mscale": 1.2}}, "long_mscale"),
        ("mistral", {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_b"),
        ("llama", {"rope_scaling": YARN | {"attn_factor": 0.5}}, "attn_factor"),
        ("llama", {"rope_scaling": YARN | {"extrapolation_factor": 2.0}}, "extrapolation_factor"),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_a_rotation_that_is_not_known_is_refused_by_name(
    family: str, changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(UnsupportedModelOption, match="use a model") as refused:
        family_config(family, **changes)
    assert refused.value.option.startswith(option)


def test_factors_that_change_nothing_are_read_over() -> None:
    more = {"attn_factor": 1, "extrapolation_factor": 1.0, "finetuned": True}
    assert family_config("llama", rope_scaling=YARN | more) == family_config(
        "llama", rope_scaling=YARN
    )


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ("llama", {"rope_scaling": {"factor": 4.0}}, "rope_scaling.rope_type"),
        ("llama", {"rope_parameters": {"factor": 4.0}}, "rope_parameters.rope_type"),
        ("llama", {"rope_parameters": {"type": "dynamic"}}, "rope_parameters.factor"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "rope_scaling.low_freq"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, "rope_scaling.short_factor"),
        ("llama", {"rope_scaling": LONG | {"long_factor": [1.0]}}, "rope_scaling.long_factor"),
        ("llama", {"rope_scaling": LONG | {"short_factor": ["a"]}}, "rope_scaling.short_factor"),
        ("phi3", {"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
        ("gemma3", {"rope_scaling": None, "rope_parameters": {"factor": 2.0}}, "rope_parameters"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(
    family: str, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidModelField, match="correct the file") as refused:
        family_config(family, **changes)
    assert refused.value.field.startswith(field)


def test_the_factors_of_longrope_do_not_depend_on_the_sequence(tmp_path: Path) -> None:
    changes = {"rope_scaling": {**LONG, "original_max_position_embeddings": 64}}
    config = make_random_model_folder(tmp_path, fields=family_fields("llama", **SIZES, **changes))
    short = table_of(config.rope, 10)[0]
    assert torch.equal(short, table_of(config.rope, 512)[0][:10])
