"""Options of config.json that would change the computation, and that the model's family lacks.

transformers reads some of them and computes without, and does not know others, which came with code
of their own. Whoever wrote one meant something by it, so it is refused by name unless it says what
is computed anyway.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config_schema import ConfigJson
from engine.model_folder_errors import UnsupportedModelOption

# What each says where it changes nothing; null always does.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    # What a query sees.
    "is_causal": (True,),
    "bidirectional": (False,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "sliding_window": (),
    "sliding_window_pattern": (),
    "interleaved_sliding_window": (),
    "attention_chunk_size": (),
    "full_attn_mod": (1,),
    # How scores are made of queries and keys.
    "alibi": (False,),
    "clip_qkv": (),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (1,),
    "attn_logit_softcapping": (),
    "attn_temperature_tuning": (False,),
    # Which heads and layers are rotated, and how.
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "global_rope_theta": (),
    "local_rope_theta": (),
    "rotary_pct": (1,),
    "rope_pct": (1,),
    "use_mrope": (False,),
    "interpolate_factor": (1,),
    # Biases, and what embeddings, layers and logits are multiplied by.
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "use_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "use_parallel_residual": (False,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "final_logit_softcapping": (),
    # Mixtures of experts.
    "shared_expert_intermediate_size": (0,),
    "num_shared_experts": (0,),
    "n_shared_experts": (0,),
    "first_k_dense_replace": (0,),
    "routed_scaling_factor": (1,),
    "router_logit_softcapping": (),
    "scoring_func": ("softmax",),
}
_HINT = "set it to null if the model was trained without, else use another model"


def refuse_what_is_not_computed(
    path: Path, schema: type[ConfigJson], fields: Mapping[str, Any]
) -> None:
    """Raises: UnsupportedModelOption for the first such option that says something."""
    for name, neutral in _NEUTRAL.items():
        value = fields.get(name)
        if value is None or value in neutral or _is_read(schema, name):
            continue
        if name == "sliding_window" and _is_idle(value, fields):
            continue
        if name == "no_rope_layers" and isinstance(value, list) and all(value):
            # One entry a layer: it is rotated.
            continue
        raise UnsupportedModelOption(path, name, _HINT)


def _is_read(schema: type[ConfigJson], name: str) -> bool:
    """Whether the family computes what the option says, or has it by nature."""
    match name:
        case "sliding_window":
            return schema is not ConfigJson
        case "attention_bias":
            return schema.qkv_bias_by_nature is not False
        case "qkv_bias":
            return schema.qkv_bias_by_nature is True
        case "mlp_bias":
            return schema.mlp_bias_by_nature is None
        case "qk_norm" | "use_qk_norm" | "qk_layernorm":
            return schema.has_qk_norm
    return name in schema.model_fields


def _is_idle(window: object, fields: Mapping[str, Any]) -> bool:
    """A window that is switched off, or that no context outgrows."""
    context = fields.get("max_position_embeddings")
    is_wide = isinstance(window, int) and isinstance(context, int) and window >= context
    return fields.get("use_sliding_window") is False or is_wide
