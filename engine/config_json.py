"""config.json and generation_config.json, in every spelling in use, as checked values.

An option that would change the arithmetic and that the engine does not have is refused by name:
a model must never be computed wrongly in silence.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from engine.model_config import (
    Architecture,
    LinearRopeScaling,
    Llama3RopeScaling,
    ModelConfig,
    RopeScaling,
)
from engine.model_folder_errors import (
    InvalidModelField,
    InvalidModelJson,
    ModelFileMissing,
    ModelFolderMissing,
    UnsupportedArchitecture,
    UnsupportedModelOption,
)

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
_COPY_HINT = "copy it from where the model came from"

_ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's authors sample with where a request does not say; None: they say nothing."""

    temperature: float | None
    top_k: int | None
    top_p: float | None


def read_file(path: Path, hint: str = _COPY_HINT) -> bytes:
    """The content of a file that the folder must have; the hint says what to do where it lacks it.

    Raises: ModelFolderMissing, ModelFileMissing.
    """
    if not path.parent.is_dir():
        raise ModelFolderMissing(path.parent)
    try:
        return path.read_bytes()
    except OSError:
        raise ModelFileMissing(path, hint) from None


def read_json_object(path: Path, hint: str = _COPY_HINT) -> dict[str, Any]:
    """The JSON object in a file of the folder.

    Raises: ModelFolderMissing, ModelFileMissing, InvalidModelJson.
    """
    content = read_file(path, hint)
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidModelJson(path, f"is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InvalidModelJson(path, "does not hold a JSON object")
    return fields


def read_model_config(folder: Path) -> tuple[ModelConfig, GenerationDefaults]:
    """The model's shape and sampling defaults; needs no weights in the folder.

    The end-of-sequence ids are those of generation_config.json where it names any.
    Raises: a leaf of ModelFolderError.
    """
    path = folder / CONFIG_FILE
    fields = read_json_object(path)
    architecture = _architecture(path, fields)
    _refuse_unsupported_options(path, fields)
    config = _parse(_ConfigJson, path, fields)
    generation_path = folder / GENERATION_FILE
    generation_fields = read_json_object(generation_path) if generation_path.is_file() else {}
    generation = _parse(_GenerationJson, generation_path, generation_fields)
    eos_token_ids = generation.eos_token_id or config.eos_token_id
    # An explicit "do_sample": false is the authors' wish for greedy decoding.
    temperature = 0.0 if generation.do_sample is False else generation.temperature
    return (
        _model_config(path, architecture, config, eos_token_ids),
        GenerationDefaults(temperature, generation.top_k, generation.top_p),
    )


def _without_torch_prefix(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _as_tuple(value: object) -> object:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


_Count = Annotated[int, Field(gt=0)]
_TokenId = Annotated[int, Field(ge=0)]
_TokenIds = Annotated[tuple[_TokenId, ...], BeforeValidator(_as_tuple)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None, BeforeValidator(_without_torch_prefix)
]


class _Json(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _RopeJson(_Json):
    rope_type: str = Field("default", validation_alias=AliasChoices("rope_type", "type"))
    rope_theta: _Positive | None = None
    partial_rotary_factor: float = 1.0
    factor: _Positive | None = None
    low_freq_factor: _Positive | None = None
    high_freq_factor: _Positive | None = None
    original_max_position_embeddings: _Count | None = None


class _ConfigJson(_Json):
    """An absent field has the value that transformers gives it."""

    vocab_size: _Count
    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
    max_position_embeddings: _Count
    rms_norm_eps: _Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: _Dtype = Field(None, validation_alias=AliasChoices("dtype", "torch_dtype"))
    eos_token_id: _TokenIds = ()
    bos_token_id: _TokenId | None = None
    # Older files: beside rope_scaling. Newer ones: inside rope_parameters.
    rope_theta: _Positive | None = None
    rope: _RopeJson | None = Field(
        None, validation_alias=AliasChoices("rope_parameters", "rope_scaling")
    )
    sliding_window: _Count | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = Field(None, strict=False)


class _GenerationJson(_Json):
    eos_token_id: _TokenIds = ()
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


_JsonT = TypeVar("_JsonT", bound=_Json)


def _parse(schema: type[_JsonT], path: Path, fields: Mapping[str, Any]) -> _JsonT:
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidModelField(path, field, first["msg"].lower()) from None


def _architecture(path: Path, fields: Mapping[str, Any]) -> Architecture:
    names = fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidModelField(path, "architectures", "must be a list that begins with a name")
    if names[0] not in _ARCHITECTURES:
        raise UnsupportedArchitecture(path, names[0], _ARCHITECTURES)
    return _ARCHITECTURES[names[0]]


def _refuse_unsupported_options(path: Path, fields: Mapping[str, Any]) -> None:
    if fields.get("quantization_config") is not None:
        hint = "use the unquantised weights of the model"
        raise UnsupportedModelOption(path, "quantization_config", hint)
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        hint = "use a model with hidden_act 'silu'"
        raise UnsupportedModelOption(path, f"hidden_act {activation!r}", hint)


def _model_config(
    path: Path, architecture: Architecture, config: _ConfigJson, eos_token_ids: tuple[int, ...]
) -> ModelConfig:
    num_kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % num_kv_heads:
        raise InvalidModelField(path, "num_key_value_heads", "must divide num_attention_heads")
    if any(token_id >= config.vocab_size for token_id in eos_token_ids):
        raise InvalidModelField(path, "eos_token_id", "must be below vocab_size")
    if architecture == "qwen2":
        _refuse_sliding_window(path, config)
    is_llama = architecture == "llama"
    return ModelConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(path, config),
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=(config.rope and config.rope.rope_theta) or config.rope_theta or 10_000.0,
        rope_scaling=_rope_scaling(path, config.rope),
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=config.attention_bias if is_llama else True,
        o_bias=config.attention_bias and is_llama,
        mlp_bias=config.mlp_bias and is_llama,
        torch_dtype=config.dtype or "float32",
        eos_token_ids=eos_token_ids,
        bos_token_id=config.bos_token_id,
    )


def _head_dim(path: Path, config: _ConfigJson) -> int:
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise InvalidModelField(path, "num_attention_heads", "must divide hidden_size")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        raise InvalidModelField(path, "head_dim", "must be even, rotary positions pair its halves")
    return head_dim


def _rope_scaling(path: Path, rope: _RopeJson | None) -> RopeScaling | None:
    if rope is None:
        return None
    if rope.partial_rotary_factor != 1.0:
        hint = "use a model that rotates whole heads"
        raise UnsupportedModelOption(path, "partial_rotary_factor", hint)
    match rope.rope_type:
        case "default":
            return None
        case "linear":
            return LinearRopeScaling(_present(path, "factor", rope.factor))
        case "llama3":
            return Llama3RopeScaling(
                factor=_present(path, "factor", rope.factor),
                low_freq_factor=_present(path, "low_freq_factor", rope.low_freq_factor),
                high_freq_factor=_present(path, "high_freq_factor", rope.high_freq_factor),
                original_max_position_embeddings=_present(
                    path, "original_max_position_embeddings", rope.original_max_position_embeddings
                ),
            )
    hint = "use a model with rope type default, linear or llama3"
    raise UnsupportedModelOption(path, f"rope type {rope.rope_type!r}", hint)


_NumberT = TypeVar("_NumberT", int, float)


def _present(path: Path, field: str, value: _NumberT | None) -> _NumberT:
    if value is None:
        raise InvalidModelField(path, f"rope_scaling.{field}", "is missing for this rope type")
    return value


def _refuse_sliding_window(path: Path, config: _ConfigJson) -> None:
    if config.layer_types is not None:
        is_used = "sliding_attention" in config.layer_types
    else:
        is_used = config.use_sliding_window and config.max_window_layers < config.num_hidden_layers
    window = config.sliding_window
    # A window that no context can outgrow is full attention.
    if is_used and window is not None and window < config.max_position_embeddings:
        hint = "set use_sliding_window to false if the model allows it, or use another model"
        raise UnsupportedModelOption(path, "sliding_window", hint)
