"""config.json and generation_config.json, in every spelling in use, as checked values.

An option that would change the arithmetic and that the engine does not have is refused by name:
a model must never be computed wrongly in silence. The fields are in engine/config_schema.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from engine.config_refusals import refuse_what_is_not_computed
from engine.config_rope import Ropes, read_ropes
from engine.config_schema import (
    ACTIVATIONS,
    FULL,
    SLIDING,
    ConfigJson,
    Gemma2Json,
    Gemma3Json,
    MistralJson,
    MixtralJson,
    Phi3Json,
    Qwen2Json,
    Qwen3Json,
    Qwen3MoeJson,
    TokenIds,
)
from engine.json_file import JsonSchema, parse, read_json_object
from engine.model_config import MixtureConfig, ModelConfig, ModelShape
from engine.model_folder_errors import (
    InvalidModelField,
    UnsupportedArchitecture,
    UnsupportedModelOption,
)
from engine.other.config_json import may_be_computed, read_other_config

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

_SCHEMAS: Mapping[str, type[ConfigJson]] = {
    "LlamaForCausalLM": ConfigJson,
    "MistralForCausalLM": MistralJson,
    "MixtralForCausalLM": MixtralJson,
    "Phi3ForCausalLM": Phi3Json,
    "Qwen2ForCausalLM": Qwen2Json,
    "Qwen3ForCausalLM": Qwen3Json,
    "Qwen3MoeForCausalLM": Qwen3MoeJson,
    "Gemma2ForCausalLM": Gemma2Json,
    "Gemma3ForCausalLM": Gemma3Json,
    # A vision model, of which the text part is computed: text_config, and the tensors it names.
    "Gemma3ForConditionalGeneration": Gemma3Json,
}
# Fields under which quantised checkpoints describe themselves.
_QUANTISATION_FIELDS = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's authors sample with where a request does not say; None: they say nothing."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_model_config(
    folder: Path, max_model_len: int | None = None
) -> tuple[ModelShape, GenerationDefaults]:
    """The model's shape and sampling defaults; needs no weights in the folder.

    `max_model_len`: no context is longer, in tokens; it may decide how positions are rotated.
    The end-of-sequence ids are those of generation_config.json where it names any.
    Raises: a leaf of ModelFolderError.
    """
    path = folder / CONFIG_FILE
    fields = read_json_object(path)
    generation_path = folder / GENERATION_FILE
    generation_fields = read_json_object(generation_path) if generation_path.is_file() else {}
    generation = parse(_GenerationJson, generation_path, generation_fields)
    # An explicit "do_sample": false is the authors' wish for greedy decoding.
    temperature = 0.0 if generation.do_sample is False else generation.temperature
    return (
        shape_from_fields(path, fields, generation.eos_token_id, max_model_len),
        GenerationDefaults(
            temperature,
            generation.top_k,
            generation.top_p,
            generation.min_p,
            generation.repetition_penalty,
        ),
    )


def shape_from_fields(
    path: Path,
    fields: Mapping[str, Any],
    eos_token_ids: tuple[int, ...] = (),
    max_model_len: int | None = None,
) -> ModelShape:
    """As `config_from_fields`; less of a family that the engine does not compute itself."""
    name = _architecture(path, fields)
    if name in _SCHEMAS or not may_be_computed(name):
        return config_from_fields(path, fields, eos_token_ids, max_model_len)
    _refuse_quantised(path, fields)
    return read_other_config(path, fields, eos_token_ids, max_model_len)


def config_from_fields(
    path: Path,
    fields: Mapping[str, Any],
    eos_token_ids: tuple[int, ...] = (),
    max_model_len: int | None = None,
) -> ModelConfig:
    """The model's shape from the content of config.json; `eos_token_ids` win over its own.

    Raises: InvalidModelField, UnsupportedArchitecture, UnsupportedModelOption.
    """
    schema = _schema(path, fields)
    text = fields.get("text_config")
    if isinstance(text, Mapping):
        # What the text part of a vision model does not say, the file says for all parts.
        fields = {**fields, **text}
    _refuse_quantised(path, fields)
    refuse_what_is_not_computed(path, schema, fields)
    config = parse(schema, path, fields)
    eos_token_ids = eos_token_ids or _eos_token_ids(config)
    return _model_config(path, config, eos_token_ids, max_model_len)


class _GenerationJson(JsonSchema):
    eos_token_id: TokenIds = ()
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def _architecture(path: Path, fields: Mapping[str, Any]) -> str:
    names = fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidModelField(path, "architectures", "must be a list that begins with a name")
    return names[0]


def _schema(path: Path, fields: Mapping[str, Any]) -> type[ConfigJson]:
    name = _architecture(path, fields)
    if name not in _SCHEMAS:
        raise UnsupportedArchitecture(path, name, _SCHEMAS)
    return _SCHEMAS[name]


def _refuse_quantised(path: Path, fields: Mapping[str, Any]) -> None:
    for field in _QUANTISATION_FIELDS:
        if fields.get(field) is not None:
            hint = "use the unquantised weights of the model"
            raise UnsupportedModelOption(path, field, hint)


def _eos_token_ids(config: ConfigJson) -> tuple[int, ...]:
    """Those of the file; those of the family where the vocabulary has them."""
    ids = config.eos_token_id
    if "eos_token_id" in config.model_fields_set:
        return ids
    return tuple(token_id for token_id in ids if token_id < config.vocab_size)


def _model_config(
    path: Path, config: ConfigJson, eos_token_ids: tuple[int, ...], max_model_len: int | None
) -> ModelConfig:
    num_kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % num_kv_heads:
        raise InvalidModelField(path, "num_key_value_heads", "must divide num_attention_heads")
    if any(token_id >= config.vocab_size for token_id in eos_token_ids):
        raise InvalidModelField(path, "eos_token_id", "must be below vocab_size")
    head_dim = _head_dim(path, config)
    ropes = read_ropes(path, config, head_dim, max_model_len)
    if config.activation_name not in ACTIVATIONS:
        hint = f"use a model with one of {', '.join(sorted(ACTIVATIONS))}"
        raise UnsupportedModelOption(path, f"activation {config.activation_name!r}", hint)
    window = config.window
    gemma = config if isinstance(config, Gemma2Json) else None
    return ModelConfig(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope=ropes.rope,
        max_position_embeddings=ropes.context,
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=config.has_qkv_bias,
        o_bias=config.has_o_bias,
        mlp_bias=config.has_mlp_bias,
        torch_dtype=config.dtype or "float32",
        eos_token_ids=eos_token_ids,
        bos_token_id=config.bos_token_id,
        activation=ACTIVATIONS[config.activation_name],
        attention_scale=gemma.query_pre_attn_scalar**-0.5 if gemma else None,
        attention_softcap=_attention_softcap(path, config),
        logit_softcap=gemma.final_logit_softcapping if gemma else None,
        sliding_layers=_sliding_layers(path, config),
        # A window that no context can outgrow is full attention.
        sliding_window=window if window and window < ropes.context else None,
        sliding_rope=ropes.sliding_rope,
        qk_norm=config.has_qk_norm,
        is_gemma=gemma is not None,
        mixture=_mixture(path, config),
        rope_choice=ropes.choice,
        remarks=_remarks(config, ropes, max_model_len),
    )


def _remarks(config: ConfigJson, ropes: Ropes, max_model_len: int | None) -> tuple[str, ...]:
    remarks = []
    served = min(ropes.context, max_model_len or ropes.context)
    if ropes.border is not None and served > ropes.border:
        remarks.append(
            f"positions are rotated for contexts of {served} tokens, also in sequences of at most "
            f"{ropes.border}, whose tokens differ from transformers'; if none is longer, give the "
            f"router and all workers --max-model-len {ropes.border}"
        )
    chunks = config.dual_chunk_attention_config
    if chunks is not None and (max_model_len or config.max_position_embeddings) > ropes.context:
        remarks.append(
            f"the context ends at {ropes.context} tokens, where the attention in chunks that the "
            "model has for longer ones would begin; that is not computed"
        )
    elif max_model_len is not None and max_model_len > ropes.context:
        remarks.append(
            f"--max-model-len asks for {max_model_len} tokens, the model's context ends at "
            f"{ropes.context}; to stretch it, write the rope_scaling that its authors name into "
            "config.json"
        )
    return tuple(remarks)


def _head_dim(path: Path, config: ConfigJson) -> int:
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise InvalidModelField(path, "num_attention_heads", "must divide hidden_size")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        raise InvalidModelField(path, "head_dim", "must be even, rotary positions pair its halves")
    return head_dim


def _sliding_layers(path: Path, config: ConfigJson) -> tuple[int, ...]:
    types = config.own_layer_types
    if config.layer_types is not None and config.layer_types != types:
        unknown = set(config.layer_types) - {FULL, SLIDING}
        if unknown or not config.reads_layer_types:
            hint = f"use a model whose layers are {FULL} or {SLIDING} as its family has them"
            raise UnsupportedModelOption(path, f"layer_types {min(unknown or types)!r}", hint)
        types = config.layer_types
    if len(types) != config.num_hidden_layers:
        raise InvalidModelField(path, "layer_types", "must have num_hidden_layers entries")
    sliding = tuple(index for index, kind in enumerate(types) if kind == SLIDING)
    if sliding and config.window is None:
        raise InvalidModelField(path, "sliding_window", "is not set, but layer_types asks for one")
    return sliding


def _attention_softcap(path: Path, config: ConfigJson) -> float | None:
    if not isinstance(config, Gemma2Json):
        return None
    if isinstance(config, Gemma3Json) and config.attn_logit_softcapping is not None:
        # transformers reads the field and computes without it: whoever wrote it meant something.
        hint = "set it to null if the model was trained without"
        raise UnsupportedModelOption(path, "attn_logit_softcapping", hint)
    return config.attn_logit_softcapping


def _mixture(path: Path, config: ConfigJson) -> MixtureConfig | None:
    if isinstance(config, MixtralJson):
        mixture = MixtureConfig(
            num_experts=config.num_local_experts,
            num_experts_per_token=config.num_experts_per_tok,
            intermediate_size=config.intermediate_size,
            normalizes_weights=True,
            layers=tuple(range(config.num_hidden_layers)),
        )
    elif isinstance(config, Qwen3MoeJson):
        mixture = MixtureConfig(
            num_experts=config.num_experts,
            num_experts_per_token=config.num_experts_per_tok,
            intermediate_size=config.moe_intermediate_size,
            normalizes_weights=config.norm_topk_prob,
            layers=config.sparse_layers,
        )
    else:
        return None
    if mixture.layers and mixture.num_experts_per_token > mixture.num_experts:
        raise InvalidModelField(
            path, "num_experts_per_tok", "must be at most the experts there are"
        )
    return mixture
