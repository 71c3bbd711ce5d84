"""Tiny folders of families that only the transformers library computes, saved by the library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.model_folder_testing import write_trained_tokenizer

VOCAB_SIZE = 320
_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# What each has beside that: positions that are learned, layers side by side, scaled logits, local
# attention, experts.
OTHER_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "cohere2": {"sliding_window": 24, "logit_scale": 0.25},
    "stablelm": {},
    "starcoder2": {"sliding_window": 24},
    "phi": {},
    "exaone4": {"sliding_window": 24},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


def make_other_model_folder(path: Path, family: str, seed: int = 0, **fields: Any) -> Path:
    """Random weights of the library's class for `family`, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SHAPE, **OTHER_FAMILIES.get(family, {}), **fields})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # Large enough for tokens to differ.
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(path)
    write_trained_tokenizer(path, VOCAB_SIZE)
    return path
