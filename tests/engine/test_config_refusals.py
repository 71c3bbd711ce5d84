"""No option that would change the computation is read over in silence."""

from typing import Any

import pytest

from engine.model_folder_errors import UnsupportedModelOption
from engine.testing import FAMILIES, family_config

# Refused whatever the family.
EVERYWHERE: dict[str, Any] = {
    "is_causal": False,
    "bidirectional": True,
    "use_bidirectional_attention": True,
    "is_encoder_decoder": True,
    "interleaved_sliding_window": 4,
    "attention_chunk_size": 8192,
    "full_attn_mod": 2,
    "alibi": True,
    "clip_qkv": 8.0,
    "attention_multiplier": 0.0156,
    "attn_temperature_tuning": True,
    "no_rope_layers": [1, 1, 1, 0],
    "no_rope_layer_interval": 4,
    "rope_interleaved": True,
    "global_rope_theta": 1e6,
    "rotary_pct": 0.25,
    "use_mrope": True,
    "interpolate_factor": 2,
    "use_bias": True,
    "lm_head_bias": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "scale_depth": 1.4,
    "logit_scale": 0.0625,
    "logits_scaling": 8.0,
    "shared_expert_intermediate_size": 20_480,
    "scoring_func": "sigmoid",
}
OF_FAMILIES: list[tuple[str, str, Any]] = [
    ("llama", "sliding_window", 24),
    ("llama", "attn_logit_softcapping", 50.0),
    ("llama", "final_logit_softcapping", 30.0),
    ("llama", "query_pre_attn_scalar", 24),
    ("llama", "qk_norm", True),
    ("llama", "qkv_bias", True),
    ("mistral", "attention_bias", True),
    ("mistral", "mlp_bias", True),
    ("mixtral", "attention_bias", True),
    ("phi3", "attention_bias", True),
    ("qwen2", "mlp_bias", True),
    ("qwen2", "use_qk_norm", True),
    ("qwen3", "mlp_bias", True),
    ("qwen3", "final_logit_softcapping", 30.0),
    ("gemma2", "mlp_bias", True),
    ("gemma2", "sliding_window_pattern", 6),
    ("gemma2", "rope_local_base_freq", 1e4),
    ("mistral", "sliding_window_pattern", 2),
]
# Read by the family, or what is computed anyway.
COMPUTED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"sliding_window": 512}),
    ("llama", {"sliding_window": 24, "use_sliding_window": False, "max_window_layers": 1}),
    ("llama", {"no_rope_layers": [1, 1]}),
    ("llama", {"pretraining_tp": 2, "rope_interleaved": False}),
    ("qwen2", {"attention_bias": True, "qkv_bias": True, "use_mrope": False}),
    ("qwen3", {"qk_norm": True, "attention_bias": True}),
    ("gemma2", {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 15.0}),
    ("gemma3", {"sliding_window_pattern": 3, "final_logit_softcapping": 6.0}),
    ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False}),
    ("mixtral", {"scoring_func": "softmax", "routed_scaling_factor": 1.0}),
]


@pytest.mark.parametrize("option", EVERYWHERE)
def test_an_option_that_no_family_computes_is_refused(option: str) -> None:
    for family in FAMILIES:
        with pytest.raises(UnsupportedModelOption, match="set it to null") as refused:
            family_config(family, **{option: EVERYWHERE[option]})
        assert refused.value.option == option


@pytest.mark.parametrize(("family", "option", "value"), OF_FAMILIES)
def test_an_option_of_other_families_is_refused(family: str, option: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelOption, match="set it to null") as refused:
        family_config(family, **{option: value})
    assert refused.value.option == option


@pytest.mark.parametrize("family", FAMILIES)
def test_options_that_are_null_are_no_options(family: str) -> None:
    nothing: dict[str, None] = dict.fromkeys(EVERYWHERE)
    assert family_config(family, **nothing) == family_config(family)


@pytest.mark.parametrize(("family", "changes"), COMPUTED)
def test_what_is_computed_is_accepted(family: str, changes: dict[str, Any]) -> None:
    family_config(family, **changes)
