"""A tiny model of every family that the engine computes, as its config.json says it.

transformers reads the same fields. Windows are shorter than the prompts of the tests, and layers of
each kind occur. Every family computes what transformers computes at every length of a sequence.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from engine.config_json import config_from_fields
from engine.model_config import ModelConfig

EOS_ID, BOS_ID = 2, 1
VOCAB_SIZE = 320

_SHARED: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}
_GEMMA: Mapping[str, Any] = {
    **_SHARED,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "pad_token_id": 0,
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        **_SHARED,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "head_dim": 16,
    },
    "mistral": {
        **_SHARED,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_hidden_layers": 3,
        "sliding_window": 24,
    },
    "mixtral": {
        **_SHARED,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_hidden_layers": 3,
        "sliding_window": None,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "qwen2": {**_SHARED, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {
        **_SHARED,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": 3,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        **_SHARED,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
    },
    "gemma2": {
        **_GEMMA,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        # Low enough to bend what a tiny model computes.
        "attn_logit_softcapping": 15.0,
        "final_logit_softcapping": 8.0,
    },
    "gemma3": {
        **_GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window_pattern": 3,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": {
        **_SHARED,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_hidden_layers": 3,
        "partial_rotary_factor": 0.75,
        "pad_token_id": 0,
        # As long as the context it was trained with: always the short factors.
        "original_max_position_embeddings": 512,
        "rope_scaling": {
            "type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
            "long_factor": [1.0, 1.5, 2.5, 5.0, 9.0, 16.0],
        },
    },
}


def family_fields(family: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a family's tiny model with some fields changed."""
    # transformers writes into what it is given.
    return deepcopy({**FAMILIES[family], **changes})


def family_config(family: str, *, max_model_len: int | None = None, **changes: Any) -> ModelConfig:
    """What the engine reads from `family_fields` for contexts of at most `max_model_len`."""
    fields = family_fields(family, **changes)
    return config_from_fields(Path("config.json"), fields, max_model_len=max_model_len)
