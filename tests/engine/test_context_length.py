"""How long a context is, type by type, and what happens where a model computes otherwise beyond."""

from typing import Any

import pytest

from engine.model_folder_errors import InvalidModelField
from engine.testing import family_config

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 5.0, 9.0, 16.0],
}
CHUNKS = {"chunk_size": 256, "local_size": 32, "original_max_position_embeddings": 256}


def yarn(original: int | None = None, **more: Any) -> dict[str, Any]:
    said = {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_type": "yarn", "factor": 4.0, **said, **more}


# name -> (family, max_position_embeddings, rope_scaling, the context)
LENGTHS: dict[str, tuple[str, int, dict[str, Any] | None, int]] = {
    "none": ("llama", 512, None, 512),
    "default": ("llama", 512, {"rope_type": "default"}, 512),
    "linear, as Vicuna 16k": ("llama", 4096, {"type": "linear", "factor": 4.0}, 16_384),
    "linear, a broken factor": ("llama", 100, {"type": "linear", "factor": 2.555}, 255),
    "linear, stretched already": (
        "llama",
        32_768,
        {"type": "linear", "factor": 8.0, "original_max_position_embeddings": 4096},
        32_768,
    ),
    "linear, a factor below one": ("llama", 512, {"type": "linear", "factor": 0.5}, 512),
    "dynamic": ("llama", 2048, {"rope_type": "dynamic", "factor": 2.0}, 4096),
    "yarn, as Qwen2.5 says": ("qwen2", 32_768, yarn(32_768), 131_072),
    "yarn, as Qwen3 says": ("qwen3", 40_960, yarn(32_768), 131_072),
    "yarn, stretched already": ("llama", 131_072, yarn(32_768), 131_072),
    "yarn, longer than stretched": ("llama", 262_144, yarn(32_768), 262_144),
    "yarn, no original length": ("llama", 512, yarn(), 2048),
    "yarn, no factor": ("llama", 512, yarn(128, factor=None), 512),
    "llama3, as Llama 3.1": (
        "llama",
        131_072,
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192, **LLAMA3},
        131_072,
    ),
    "longrope, as Phi-3": ("phi3", 131_072, LONG, 131_072),
    "longrope under the name of yarn": ("phi3", 131_072, {**LONG, "type": "yarn"}, 131_072),
    "linear, as Gemma 3": ("gemma3", 131_072, {"rope_type": "linear", "factor": 8.0}, 131_072),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_context_has_the_length_that_its_file_means(name: str) -> None:
    family, declared, scaling, context = LENGTHS[name]
    changes: dict[str, Any] = {"max_position_embeddings": declared, "rope_scaling": scaling}
    assert family_config(family, **changes).max_position_embeddings == context


def test_the_layers_of_full_attention_decide_where_the_kinds_differ() -> None:
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    }
    config = family_config("gemma2", rope_theta=None, rope_parameters=ropes)
    assert config.max_position_embeddings == 4 * 512


def test_a_window_is_one_as_long_as_the_stretched_context_outgrows_it() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    wide: dict[str, Any] = {"sliding_window": 600, "rope_scaling": scaling}
    assert family_config("mistral", **wide).sliding_window == 600
    assert family_config("mistral", sliding_window=600).sliding_window is None


@pytest.mark.parametrize(
    ("family", "changes", "border"),
    [
        ("phi3", {"original_max_position_embeddings": 64, "rope_scaling": LONG}, 64),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 512),
    ],
)
def test_a_served_context_within_the_trained_one_is_rotated_as_it_was_trained(
    family: str, changes: dict[str, Any], border: int
) -> None:
    whole = family_config(family, **changes)
    (remark,) = whole.remarks
    assert f"--max-model-len {border}" in remark
    short = family_config(family, max_model_len=border, **changes)
    assert short.rope != whole.rope
    assert short == family_config(family, max_model_len=border // 2, **changes)
    assert short.remarks == ()
    # Whoever chose otherwise must not be taken for the same model.
    assert whole.rope_choice == "" != short.rope_choice
    beyond = family_config(family, max_model_len=border + 1, **changes)
    assert beyond.rope != short.rope
    assert f"--max-model-len {border}" in beyond.remarks[0]
    # The tables of a worker hold the whole context, whatever is served.
    assert short.max_position_embeddings == whole.max_position_embeddings > border


@pytest.mark.parametrize("max_model_len", [2, 511, 512])
def test_where_the_context_decides_nothing_it_chooses_nothing(max_model_len: int) -> None:
    for family in ("llama", "phi3", "gemma3"):
        served = family_config(family, max_model_len=max_model_len)
        assert served == family_config(family)
        assert (served.rope_choice, served.remarks) == ("", ())


def test_who_asks_for_more_than_the_model_has_is_told() -> None:
    (remark,) = family_config("qwen2", max_model_len=513).remarks
    assert "513" in remark
    assert "512" in remark
    assert "rope_scaling" in remark


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 256),
        ({"chunk_size": 200}, 200),
        ({"original_max_position_embeddings": 100}, 100),
        ({"original_max_position_embeddings": None}, 256),
        # The third chunk begins before the second one is as long as its positions count.
        ({"local_size": 200}, 112),
        ({"chunk_size": 4096, "original_max_position_embeddings": None}, 512),
    ],
)
def test_a_context_ends_where_attention_in_chunks_would_begin(
    changes: dict[str, Any], length: int
) -> None:
    config = family_config("qwen2", dual_chunk_attention_config={**CHUNKS, **changes})
    assert config.max_position_embeddings == length
    is_cut = length < 512
    assert [f"ends at {length} tokens" in remark for remark in config.remarks] == [True] * is_cut


def test_who_asks_for_less_than_a_chunk_is_told_nothing_and_who_asks_for_more_is_told() -> None:
    fields = {"dual_chunk_attention_config": CHUNKS}
    assert family_config("qwen2", max_model_len=256, **fields).remarks == ()
    assert len(family_config("qwen2", max_model_len=257, **fields).remarks) == 1


@pytest.mark.parametrize(
    ("chunks", "field"),
    [
        ({"chunk_size": 256}, "dual_chunk_attention_config.local_size"),
        ({"chunk_size": 0, "local_size": 1}, "dual_chunk_attention_config.chunk_size"),
        ({"chunk_size": 64, "local_size": 64}, "dual_chunk_attention_config"),
    ],
)
def test_chunks_that_cannot_be_are_named(chunks: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidModelField, match="correct the file") as refused:
        family_config("qwen2", dual_chunk_attention_config=chunks)
    assert refused.value.field == field
