"""The models of the comparison: folders that Tandem, vLLM and transformers load alike."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from engine.bundled import bundled_model_path

BUNDLED = "bundled"
SMALL = "0.1b"
_VOCAB_SIZE = 32_000
_SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")

# 100.1 million parameters, in the shape of Llama: what a core reads in each decode step.
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCAB_SIZE,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def model_folder(name: str, work_folder: Path) -> Path:
    """The folder of "bundled", "0.1b" (written on first use) or of a path."""
    if name == BUNDLED:
        return bundled_model_path()
    if name == SMALL:
        folder = work_folder / "random-0.1b"
        if not (folder / "config.json").is_file():
            _write_small(folder)
        return folder
    return Path(name)


def facts_of(folder: Path) -> tuple[int, str, int]:
    """(vocabulary size, dtype, bytes of weights) of a model folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
    return int(config["vocab_size"]), str(dtype), num_bytes


def _write_small(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    hidden, inner = _CONFIG["hidden_size"], _CONFIG["intermediate_size"]
    keys = _CONFIG["num_key_value_heads"] * _CONFIG["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def noise(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": noise(_VOCAB_SIZE, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    for index in range(_CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = noise(*shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder)
    # Last: its presence says that the folder is whole.
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*_SPECIAL_TOKENS, *alphabet]
    pieces += [f"w{number}" for number in range(len(pieces), _VOCAB_SIZE)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
