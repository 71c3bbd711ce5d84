"""Folders of random models in the Hugging Face layout, which transformers loads as well."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from engine.config_json import read_model_config
from engine.families_testing import BOS_ID, EOS_ID, FAMILIES
from engine.model_config import ModelConfig
from engine.models.tensor_layout import expected_shapes
from engine.random_weights_testing import spread

_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
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


def make_random_model_folder(
    path: Path,
    family: str = "llama",
    seed: int = 0,
    *,
    fields: Mapping[str, Any] | None = None,
    num_shards: int = 1,
) -> ModelConfig:
    """Write a complete folder: configuration, weights, tokenizer, chat template.

    `fields` is the whole config.json where it is not that of the family in `FAMILIES`; see
    `family_fields`. The weights are spread so that greedy output wanders instead of repeating one
    token.
    """
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", fields or FAMILIES[family])
    _write_json(path / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID})
    config, _ = read_model_config(path)
    assert isinstance(config, ModelConfig)
    _write_weights(path, random_tensors(config, seed), num_shards)
    write_trained_tokenizer(path, config.vocab_size)
    return config


def random_tensors(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of the model by its name in the files, float32."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        tensors[name] = spread(name, torch.randn(shape, generator=generator), config)
    return tensors


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


def write_trained_tokenizer(path: Path, vocab_size: int) -> None:
    """tokenizer.json and its settings, of a vocabulary of that size."""
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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
