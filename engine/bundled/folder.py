"""Writes a trained network as a standard Hugging Face folder, with the hashes of its files."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.bundled import CHECKSUM_FILE
from engine.bundled.network import NetworkShape, TrainingNetwork
from engine.bundled.vocabulary import BOS, END, PAD, SPECIAL_TOKENS, write_tokenizer

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
REPORT_FILE = "training.json"
# The words of the training text, one a line, so that a test can tell words from noise.
WORDS_FILE = "words.txt"
LICENCE_FILE = "LICENSE-TEXT"
# The README is left out: it is for people, and may be corrected without a new model.
_NOT_HASHED = {CHECKSUM_FILE, "README.md"}


def write_model(
    network: TrainingNetwork,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    report: Mapping[str, object],
    words: Iterable[str],
    licence: str | None,
) -> None:
    """Write weights (bfloat16), configuration, tokenizer, report, words and SHA256SUMS."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(network.shape))
    _write_json(folder / "generation_config.json", _generation_config())
    _write_json(folder / REPORT_FILE, report)
    write_tokenizer(tokenizer, folder, network.shape.max_positions)
    (folder / WORDS_FILE).write_text("".join(f"{word}\n" for word in words), "utf-8")
    if licence is not None:
        (folder / LICENCE_FILE).write_text(licence, "utf-8")
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over the files of a folder, in the format of sha256sum."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
        if name not in _NOT_HASHED
    ]
    (folder / CHECKSUM_FILE).write_text("".join(lines), "utf-8")


def _config(shape: NetworkShape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def _generation_config() -> dict[str, object]:
    return {
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": [SPECIAL_TOKENS.index(END)],
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
    }


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
