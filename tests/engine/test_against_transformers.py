"""Every family and variant computes what transformers computes on the same folder.

One forward pass of transformers over prompt and answer tells both: how far the logprobs of the
whole vocabulary are apart, and whether each token is the one that greedy generation would choose.
In bfloat16 the two round at other places: there, what the engine is off from float32 is compared
with what transformers is off.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine.attention.choice import AttentionShape, choose_attention
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_folder import open_model_folder
from engine.model_runner import ModelRunner
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    family_fields,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams

NUM_OUTPUT = 12
VOCAB = 320
BLOCK_SIZE = 16
ALL_LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=VOCAB)
# Natural logarithms; the largest difference that was seen is half of it.
TOLERANCE = 1e-3

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 5.0, 9.0, 16.0],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama, tied, llama3": family_fields("llama", tie_word_embeddings=True, rope_scaling=LLAMA3),
    "llama, biases, linear": family_fields(
        "llama",
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=4,
        rope_scaling={"type": "linear", "factor": 2.0},
    ),
    "llama, wide heads, one of keys": family_fields("llama", head_dim=32, num_key_value_heads=1),
    "llama, yarn": family_fields("llama", rope_scaling=YARN),
    "llama, yarn, mscale": family_fields(
        "llama", rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}
    ),
    "llama, yarn, attention factor": family_fields(
        "llama", rope_scaling=YARN | {"attention_factor": 0.8, "beta_fast": 16, "beta_slow": 2}
    ),
    "llama, rope_parameters": family_fields(
        "llama", rope_theta=None, rope_parameters={**LLAMA3, "rope_theta": 5e5}
    ),
    "llama, gelu": family_fields("llama", hidden_act="gelu_pytorch_tanh"),
    "mistral, no window": family_fields("mistral", sliding_window=None),
    "mixtral, window": family_fields("mixtral", sliding_window=24, num_key_value_heads=4),
    "qwen2, tied, one head of keys": family_fields(
        "qwen2", tie_word_embeddings=True, num_key_value_heads=1
    ),
    "qwen2, window": family_fields(
        "qwen2",
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
    ),
    "qwen3, layer types, biases": family_fields(
        "qwen3",
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen3_moe, window, every other layer": family_fields(
        "qwen3_moe",
        norm_topk_prob=False,
        decoder_sparse_step=2,
        mlp_only_layers=[],
        use_sliding_window=True,
        sliding_window=24,
        attention_bias=True,
    ),
    "gemma2, layer types, no caps": family_fields(
        "gemma2",
        layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
    ),
    "gemma3, rope by layer type, cap": family_fields(
        "gemma3",
        rope_scaling=None,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e5},
        },
        final_logit_softcapping=6.0,
        tie_word_embeddings=False,
    ),
    "phi3, plain, window": family_fields(
        "phi3", rope_scaling=None, partial_rotary_factor=1.0, sliding_window=24
    ),
    # Prompts are longer than 16 tokens: transformers takes the long factors.
    "phi3, long": family_fields("phi3", rope_scaling=LONG, original_max_position_embeddings=16),
}
# Sequences are of 162 tokens, of which the file says 64; transformers is asked with 161.
NUM_STRETCHED = 161
TRAINED = 64
STRETCHED: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "yarn, no original length": {"rope_type": "yarn", "factor": 4.0},
}
# Of sequences within what the model was trained with, where a longer one would be rotated
# otherwise.
WITHIN: dict[str, dict[str, Any]] = {
    "dynamic": family_fields("llama", rope_scaling={"type": "dynamic", "factor": 4.0}),
    "phi3": family_fields("phi3", rope_scaling=LONG, original_max_position_embeddings=200),
}
MODELS = {**FAMILIES, **VARIANTS}
ON_GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
LENGTHS = (17, 26, 64, 150)


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("model")
    make_random_model_folder(path, fields=MODELS[request.param], seed=7, num_shards=2)
    return path


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )


def prompts(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    rng = random.Random(6)
    return [tuple(rng.randrange(3, VOCAB) for _ in range(length)) for length in lengths]


def run(
    folder: Path,
    requests: list[TrialRequest],
    max_model_len: int | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
) -> list[TrialResult]:
    model = load_model(open_model_folder(folder, max_model_len), dtype, device)
    config = model.config
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
    shape = AttentionShape(
        layout, config.num_heads, config.layer_attention, model.device, model.dtype
    )
    # Heads are smaller than FlashInfer's.
    attention = choose_attention(shape, "torch") if device == "cuda" else None
    pool = KvPool(layout, 100, model.device)
    runner = ModelRunner(model, pool, max_num_seqs=8, attention=attention)
    return run_together(runner, requests, BLOCK_SIZE, 100)


@torch.inference_mode()
def logprobs_in(reference: Any, prompt: tuple[int, ...], result: TrialResult) -> torch.Tensor:
    """[num_output, vocab] after the same tokens, on the CPU."""
    ids = torch.tensor([prompt + tuple(result.token_ids[:-1])], device=reference.device)
    logits = reference(ids).logits[0, len(prompt) - 1 :].float()
    logprobs: torch.Tensor = logits.log_softmax(-1).cpu()
    return logprobs


def own_logprobs(result: TrialResult) -> torch.Tensor:
    rows = [sorted(logprob.top) for logprob in result.logprobs if logprob is not None]
    return torch.tensor([[value for _, value in row] for row in rows])


@torch.inference_mode()
def assert_is_greedy_in(reference: Any, prompt: tuple[int, ...], result: TrialResult) -> None:
    """Each token is the likeliest after those before it, and the logprobs are close."""
    ids = torch.tensor([prompt + tuple(result.token_ids[:-1])])
    logits = reference(ids).logits[0, len(prompt) - 1 :].float()
    assert result.token_ids == logits.argmax(-1).tolist()
    for theirs, ours in zip(logits.log_softmax(-1), result.logprobs, strict=True):
        assert ours is not None
        by_id = torch.tensor([logprob for _, logprob in sorted(ours.top)])
        torch.testing.assert_close(by_id, theirs, rtol=0, atol=TOLERANCE)


def test_a_mixed_batch_in_odd_chunks_gives_the_logprobs_of_transformers(folder: Path) -> None:
    asked = prompts(LENGTHS)
    whole = [TrialRequest(asked[-1], NUM_OUTPUT, ALL_LOGPROBS)]
    chunked = [
        TrialRequest(prompt, NUM_OUTPUT, ALL_LOGPROBS, chunk_tokens=7 + 12 * index)
        for index, prompt in enumerate(asked)
    ]
    results = run(folder, whole + chunked)
    assert results[0] == results[-1]
    reference = load_reference(folder)
    for prompt, result in zip(asked, results[1:], strict=True):
        assert_is_greedy_in(reference, prompt, result)
    # A model that repeats itself would prove little.
    assert len({token for result in results for token in result.token_ids}) > 20


def make_rounded_folder(path: Path, family: str) -> None:
    """Whose weights bfloat16 can hold: what is off is off by computing."""
    make_random_model_folder(path, family, seed=7)
    file = path / "model.safetensors"
    tensors = {name: one.bfloat16().float() for name, one in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_a_family_is_no_further_off_than_transformers(
    family: str, device: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    make_rounded_folder(tmp_path, family)
    asked = prompts(LENGTHS)
    requests = [TrialRequest(prompt, NUM_OUTPUT, ALL_LOGPROBS, chunk_tokens=40) for prompt in asked]
    results = run(tmp_path, requests, dtype="bfloat16", device=device)
    exact = load_reference(tmp_path)
    rounded = load_reference(tmp_path, torch.bfloat16).to(device)
    ours, theirs = [], []
    for prompt, result in zip(asked, results, strict=True):
        wanted = logprobs_in(exact, prompt, result)
        ours.append((own_logprobs(result) - wanted).abs().mean())
        theirs.append((logprobs_in(rounded, prompt, result) - wanted).abs().mean())
    off, allowed = float(torch.stack(ours).mean()), float(torch.stack(theirs).mean())
    assert 0 < off < 1.5 * allowed, (off, allowed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", [ON_GPU])
def test_on_a_gpu_a_family_gives_the_logprobs_of_transformers(
    family: str, device: str, tmp_path: Path
) -> None:
    make_random_model_folder(tmp_path, family, seed=7)
    asked = prompts(LENGTHS)
    requests = [
        TrialRequest(prompt, NUM_OUTPUT, ALL_LOGPROBS, chunk_tokens=7 + 12 * index)
        for index, prompt in enumerate(asked)
    ]
    reference = load_reference(tmp_path)
    for prompt, result in zip(asked, run(tmp_path, requests, device=device), strict=True):
        assert_is_greedy_in(reference, prompt, result)


@pytest.mark.parametrize("name", STRETCHED)
def test_a_sequence_beyond_the_old_length_is_what_transformers_computes(
    name: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    fields = family_fields("llama", max_position_embeddings=TRAINED, rope_scaling=STRETCHED[name])
    config = make_random_model_folder(tmp_path, fields=fields, seed=7)
    assert config.max_position_embeddings == 4 * TRAINED
    (prompt,) = prompts((NUM_STRETCHED + 1 - NUM_OUTPUT,))
    request = TrialRequest(prompt, NUM_OUTPUT, ALL_LOGPROBS, chunk_tokens=50)
    # For dynamic, transformers' base follows the sequence, ours the longest that is served.
    (result,) = run(tmp_path, [request], max_model_len=NUM_STRETCHED)
    assert_is_greedy_in(load_reference(tmp_path), prompt, result)


@pytest.mark.parametrize("name", WITHIN)
def test_within_the_trained_length_a_context_of_that_length_is_what_transformers_computes(
    name: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, fields=WITHIN[name], seed=7)
    asked = prompts((17, 150))
    requests = [TrialRequest(prompt, NUM_OUTPUT, ALL_LOGPROBS) for prompt in asked]
    results = run(tmp_path, requests, max_model_len=200)
    for prompt, result in zip(asked, results, strict=True):
        assert_is_greedy_in(load_reference(tmp_path), prompt, result)
    assert run(tmp_path, requests) != results, "the whole context is rotated otherwise"


def test_the_text_part_of_a_vision_model_computes_what_the_whole_model_says(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path / "text", "gemma3", seed=7)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=family_fields("gemma3"),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=VOCAB - 1,
    )
    reference = transformers.Gemma3ForConditionalGeneration(config).eval()
    text = load_reference(tmp_path / "text")
    reference.model.language_model.load_state_dict(text.model.state_dict())
    reference.save_pretrained(tmp_path / "both")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "both" / name).write_bytes((tmp_path / "text" / name).read_bytes())
    prompt = tuple(range(3, 60))
    result = run(tmp_path / "both", [TrialRequest(prompt, NUM_OUTPUT, ALL_LOGPROBS)])[0]
    assert_is_greedy_in(reference, prompt, result)
