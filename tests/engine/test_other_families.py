"""Families that only the transformers library computes, over our paged KV."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_any_model, load_model
from engine.model_folder import open_model_folder
from engine.model_folder_errors import (
    InvalidModelField,
    InvalidWeightFile,
    ModelFolderError,
    UnsupportedModelOption,
)
from engine.model_runner import ModelRunner
from engine.models.model import Model
from engine.other.testing import OTHER_FAMILIES, VOCAB_SIZE, make_other_model_folder
from engine.step_pieces import pieces_of
from engine.testing import TrialRequest, TrialResult, run_together
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk

BLOCK_SIZE = 8
NUM_BLOCKS = 96
LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=4, num_prompt_logprobs=2)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, seed=7, num_logprobs=4)
PROMPT = tuple(3 + i * 37 % 300 for i in range(61))


def load(folder: Path, dtype: str = "float32") -> Model:
    return load_any_model(open_model_folder(folder), dtype)


def run(
    model: Model, requests: Sequence[TrialRequest], dtype: str = "float32"
) -> list[TrialResult]:
    shape = model.config
    layout = KvLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE, dtype)
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), max_num_seqs=8)
    return run_together(runner, requests, BLOCK_SIZE, NUM_BLOCKS)


@torch.inference_mode()
def by_library(folder: Path, prompt: Sequence[int], num_output: int) -> list[int]:
    """Greedy, computed whole for every token."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    token_ids = list(prompt)
    for _ in range(num_output):
        logits = network(input_ids=torch.tensor([token_ids]), use_cache=False).logits
        token_ids.append(int(logits[0, -1].argmax()))
    return token_ids[len(prompt) :]


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_tokens_are_those_of_the_library(tmp_path: Path, family: str) -> None:
    folder = make_other_model_folder(tmp_path, family)
    (result,) = run(load(folder), [TrialRequest(PROMPT, 12, chunk_tokens=25)])
    assert result.token_ids == by_library(folder, PROMPT, 12)


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_a_request_has_the_same_bits_in_every_batch_and_every_cut(
    tmp_path: Path, family: str
) -> None:
    model = load(make_other_model_folder(tmp_path, family))
    requests = [
        TrialRequest(PROMPT, 9, LOGPROBS),
        TrialRequest(PROMPT[:5], 14, SAMPLED),
        TrialRequest(PROMPT[20:50], 3, LOGPROBS, chunk_tokens=7),
    ]
    alone = [run(model, [request])[0] for request in requests]
    assert run(model, requests) == alone
    cut = TrialRequest(PROMPT, 9, LOGPROBS, chunk_tokens=13)
    together = run(model, [*requests[1:], cut])
    assert (together[2].token_ids, together[2].logprobs) == (alone[0].token_ids, alone[0].logprobs)


def test_bfloat16_has_the_same_bits_in_every_batch(tmp_path: Path) -> None:
    model = load(make_other_model_folder(tmp_path, "olmo2"), "bfloat16")
    requests = [TrialRequest(PROMPT, 9, LOGPROBS), TrialRequest(PROMPT[:5], 14, SAMPLED)]
    alone = [run(model, [request], "bfloat16")[0] for request in requests]
    assert run(model, requests, "bfloat16") == alone


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        # Its attention is its own.
        ("falcon", {"alibi": False}, "its attention"),
        # It says windows to its attention, and masks without.
        ("olmoe", {"sliding_window": 8, "num_experts": 2, "num_experts_per_tok": 1}, "% off"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_at_start(
    tmp_path: Path, family: str, fields: dict[str, Any], reason: str
) -> None:
    folder = make_other_model_folder(tmp_path, family, **fields)
    with pytest.raises(UnsupportedModelOption, match=reason):
        load(folder)


def changed(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            "dynamic",
        ),
        ({"attention_chunk_size": 64}, "attention_chunk_size"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_no_trial_would_show_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    folder = changed(make_other_model_folder(tmp_path, "gpt_neox"), **fields)
    with pytest.raises(UnsupportedModelOption, match=reason):
        open_model_folder(folder)


def test_a_config_without_a_context_length_is_refused_by_name(tmp_path: Path) -> None:
    folder = changed(make_other_model_folder(tmp_path, "gpt_neox"), max_position_embeddings=None)
    with pytest.raises(InvalidModelField, match="max_position_embeddings"):
        open_model_folder(folder)


def test_a_family_of_another_version_of_the_library_is_refused_in_a_line(tmp_path: Path) -> None:
    folder = changed(make_other_model_folder(tmp_path, "gpt_neox"), model_type="gpt_later")
    with pytest.raises(ModelFolderError, match="gpt_later") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("MyOwnNeoXForCausalLM", "MyOwnNeoXForCausalLM, which the transformers library here"),
        ("OPTForCausalLM", "OPTForCausalLM, which transformers takes for GPTNeoXForCausalLM"),
    ],
)
def test_a_class_of_its_own_is_not_computed_as_the_librarys(
    tmp_path: Path, name: str, told: str
) -> None:
    folder = changed(
        make_other_model_folder(tmp_path, "gpt_neox"),
        architectures=[name],
        auto_map={"AutoModelForCausalLM": f"modeling_own.{name}"},
    )
    with pytest.raises(UnsupportedModelOption, match=told):
        load(folder)


def test_defaults_of_a_class_are_looked_at_as_what_the_file_says(tmp_path: Path) -> None:
    folder = make_other_model_folder(tmp_path, "llama4_text", head_dim=16, num_experts_per_tok=1)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    # Chunks of 8,192 tokens, says the class then.
    for name in ("attention_chunk_size", "layer_types", "no_rope_layers"):
        fields.pop(name, None)
    path.write_text(json.dumps(fields))
    open_model_folder(folder)
    with pytest.raises(UnsupportedModelOption, match=r"layer_types|attention_chunk_size"):
        load(folder)


def test_a_context_shorter_than_the_trial_is_served(tmp_path: Path) -> None:
    folder = make_other_model_folder(tmp_path, "gpt2", n_positions=20, max_position_embeddings=20)
    (result,) = run(load(folder), [TrialRequest(PROMPT[:9], 8)])
    assert result.token_ids == by_library(folder, PROMPT[:9], 8)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    folder = make_other_model_folder(tmp_path, "gpt_neox")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if "dense_h_to_4h.weight" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidWeightFile, match="missing keys"):
        load(folder)


def test_the_engines_own_decoder_is_not_built_of_another_family(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelOption, match="transformers"):
        load_model(make_other_model_folder(tmp_path, "gpt_neox"))


CHUNKS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 40), st.booleans()), min_size=1, max_size=8
)


@given(chunks=CHUNKS, max_rows=st.integers(1, 30))
def test_pieces_hold_every_token_once_and_in_order(
    chunks: list[tuple[int, int, bool]], max_rows: int
) -> None:
    plan = [ScheduledChunk(slot, *chunk) for slot, chunk in enumerate(chunks)]
    pieces = list(pieces_of(plan, max_rows))
    assert all(0 < sum(chunk.num_tokens for chunk in piece) <= max_rows for piece in pieces)
    parts = [chunk for piece in pieces for chunk in piece]
    for whole in plan:
        mine = [part for part in parts if part.slot == whole.slot]
        positions = [at for part in mine for at in range(part.start, part.start + part.num_tokens)]
        assert positions == list(range(whole.start, whole.start + whole.num_tokens))
        assert [part.samples for part in mine] == [False] * (len(mine) - 1) + [whole.samples]


def test_vocabularies_are_those_of_the_folder(tmp_path: Path) -> None:
    model = load(make_other_model_folder(tmp_path, "gpt2"))
    assert model.config.vocab_size == VOCAB_SIZE
    assert model.logits(torch.empty(0, 64)).shape == (0, VOCAB_SIZE)
