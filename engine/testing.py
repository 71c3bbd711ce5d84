"""Small random models, and a loop that runs sequences together: for the tests of every package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from engine.model_config import Architecture, Llama3RopeScaling, ModelConfig, RopeScaling
from engine.runner import Runner
from engine.weights import expected_shapes
from scheduling.sampling import SamplingParams, TokenLogprobs
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

GREEDY = SamplingParams(temperature=0.0)

_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
_EOS_ID, _BOS_ID = 2, 1
_CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
_SENTENCES = (
    "A worker reads the prompt once and remembers what it saw.",
    "Another worker continues the answer, one word after the other.",
    "Between them travels the memory, block by block, and none is lost.",
    "The router decides who does what, and tells everyone when it is over.",
    "Grüße aus Köln, привет, 你好: text has more letters than English knows.",
)


def random_model_config(
    architecture: Architecture,
    *,
    vocab_size: int = 320,
    hidden_size: int = 64,
    intermediate_size: int = 96,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    rope_scaling: RopeScaling | None = None,
    max_position_embeddings: int = 512,
    tie_word_embeddings: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> ModelConfig:
    """A tiny model. `attention_bias` and `mlp_bias` are Llama's flags; Qwen2 has its own rule."""
    is_qwen2 = architecture == "qwen2"
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        rope_theta=10_000.0,
        rope_scaling=rope_scaling,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        qkv_bias=is_qwen2 or attention_bias,
        o_bias=not is_qwen2 and attention_bias,
        mlp_bias=not is_qwen2 and mlp_bias,
        torch_dtype="float32",
        eos_token_ids=(_EOS_ID,),
        bos_token_id=_BOS_ID,
    )


def make_random_model_folder(
    path: Path,
    architecture: Architecture = "llama",
    seed: int = 0,
    config: ModelConfig | None = None,
    num_shards: int = 1,
) -> ModelConfig:
    """Write a complete Hugging Face folder: configuration, weights, tokenizer, chat template.

    The weights are spread so that greedy output wanders instead of repeating one token.
    """
    config = config or random_model_config(architecture)
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", config_json(config))
    _write_json(path / "generation_config.json", {"bos_token_id": _BOS_ID, "eos_token_id": _EOS_ID})
    _write_weights(path, random_tensors(config, seed), num_shards)
    _write_tokenizer(path, config.vocab_size)
    return config


def config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json as Hugging Face would write it for this model."""
    fields: dict[str, Any] = {
        "architectures": [
            "Qwen2ForCausalLM" if config.architecture == "qwen2" else "LlamaForCausalLM"
        ],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "torch_dtype": config.torch_dtype,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0],
    }
    if config.architecture == "llama":
        fields |= {"attention_bias": config.o_bias, "mlp_bias": config.mlp_bias}
    if config.architecture == "llama" or config.head_dim * config.num_heads != config.hidden_size:
        fields["head_dim"] = config.head_dim
    if config.rope_scaling is not None:
        fields["rope_scaling"] = _rope_scaling_json(config.rope_scaling)
    return fields


def random_tensors(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of the model by its name in the files, float32."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            tensors[name] = 1.0 + 0.1 * noise
        elif name.endswith(".bias"):
            tensors[name] = 0.5 * noise
        elif name.startswith(("model.embed_tokens", "lm_head")):
            tensors[name] = noise
        else:
            # Strong enough that the output depends on the context, not on the last token alone.
            tensors[name] = noise * (2.0 / shape[1] ** 0.5)
    return tensors


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """A sequence for `run_together`."""

    prompt: tuple[int, ...]
    num_output: int
    sampling: SamplingParams = GREEDY
    # The prompt is computed in chunks of at most this many tokens.
    chunk_tokens: int = 1 << 30
    # Output tokens that are already known and are computed again, as after a preemption.
    known_output: tuple[int, ...] = ()


@dataclass(slots=True)
class TrialResult:
    """What a sequence of `run_together` produced, without its known output."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)


def run_together(
    runner: Runner, requests: Sequence[TrialRequest], block_size: int, num_blocks: int
) -> list[TrialResult]:
    """Run all requests at once, each as fast as its chunks allow; slots are 0, 1, 2 and so on.

    Blocks are handed out as they are needed, in a scattered order, from `num_blocks`.
    """
    free = [i for rest in range(3) for i in range(num_blocks) if i % 3 == rest]
    results = [TrialResult() for _ in requests]
    lengths, computed, held = [], [0] * len(requests), [0] * len(requests)
    for slot, request in enumerate(requests):
        history = request.prompt + request.known_output
        runner.add(SequenceStart(slot, history, len(request.prompt), request.sampling, ()))
        lengths.append(len(history))
    running = [slot for slot, request in enumerate(requests) if request.num_output]
    while running:
        chunks = []
        for slot in running:
            size = min(requests[slot].chunk_tokens, lengths[slot] - computed[slot])
            end = computed[slot] + size
            more = -(-end // block_size) - held[slot]
            runner.extend_blocks(slot, [free.pop() for _ in range(more)])
            held[slot] += more
            chunks.append(ScheduledChunk(slot, computed[slot], size, end == lengths[slot]))
            computed[slot] = end
        step = runner.step(StepPlan(tuple(chunks)))
        logprobs = step.logprobs or (None,) * len(step.slots)
        for slot, token, logprob in zip(step.slots, step.token_ids, logprobs, strict=True):
            results[slot].token_ids.append(token)
            results[slot].logprobs.append(logprob)
            lengths[slot] += 1
            if len(results[slot].token_ids) == requests[slot].num_output:
                runner.remove(slot)
                running.remove(slot)
    return results


def _write_weights(path: Path, tensors: dict[str, Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        mine = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(mine, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    total = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(path / "model.safetensors.index.json", index)


def _write_tokenizer(path: Path, vocab_size: int) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": _CHAT_TEMPLATE,
        },
    )


def _rope_scaling_json(scaling: RopeScaling) -> dict[str, Any]:
    if isinstance(scaling, Llama3RopeScaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    return {"rope_type": "linear", "factor": scaling.factor}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
