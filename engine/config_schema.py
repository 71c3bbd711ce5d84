"""The fields of config.json that the engine reads, family by family.

An absent field has the value that transformers gives it. What a family has by its nature and no
file says is a class variable.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from engine.context_length import DualChunkJson
from engine.json_file import JsonSchema
from engine.model_config import Activation, Architecture

FULL, SLIDING = "full_attention", "sliding_attention"


def _without_torch_prefix(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _as_tuple(value: object) -> object:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


# No dimension of a tensor is larger, and each layer is an object of ours.
Count = Annotated[int, Field(gt=0, le=2**31)]
NumLayers = Annotated[int, Field(gt=0, le=10_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[tuple[TokenId, ...], BeforeValidator(_as_tuple)]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None, BeforeValidator(_without_torch_prefix)
]
_LayerTypes = Annotated[tuple[str, ...] | None, Field(strict=False)]

# What each name of an activation means.
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _either(by_nature: bool | None, in_file: bool) -> bool:
    return in_file if by_nature is None else by_nature


class ConfigJson(JsonSchema):
    """Llama's configuration, and what the other families share with it."""

    architecture: ClassVar[Architecture] = "llama"
    default_rope_theta: ClassVar[float] = 10_000.0
    has_qk_norm: ClassVar[bool] = False
    # Whether a part of each head may be left unrotated.
    has_partial_rotation: ClassVar[bool] = False
    # The file may say layer by layer which attention is local.
    reads_layer_types: ClassVar[bool] = False
    # Which products add a bias; None where the file says so.
    qkv_bias_by_nature: ClassVar[bool | None] = None
    o_bias_by_nature: ClassVar[bool | None] = None
    mlp_bias_by_nature: ClassVar[bool | None] = None

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: NumLayers
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count
    original_max_position_embeddings: Count | None = None
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    dtype: Dtype = Field(None, validation_alias=AliasChoices("dtype", "torch_dtype"))
    eos_token_id: TokenIds = (2,)
    bos_token_id: TokenId | None = 1
    # Older files: beside rope_scaling. Newer ones: inside rope_parameters.
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    sliding_window: Count | None = None
    layer_types: _LayerTypes = None
    dual_chunk_attention_config: DualChunkJson | None = None

    @property
    def has_qkv_bias(self) -> bool:
        return _either(self.qkv_bias_by_nature, self.attention_bias)

    @property
    def has_o_bias(self) -> bool:
        return _either(self.o_bias_by_nature, self.attention_bias)

    @property
    def has_mlp_bias(self) -> bool:
        return _either(self.mlp_bias_by_nature, self.mlp_bias)

    @property
    def activation_name(self) -> str:
        return self.hidden_act

    @property
    def window(self) -> int | None:
        """The window of the sliding layers; None where the model uses none."""
        return None

    @property
    def own_layer_types(self) -> tuple[str, ...]:
        """One entry a layer, where the file does not say."""
        return (SLIDING if self.window is not None else FULL,) * self.num_hidden_layers


class MistralJson(ConfigJson):
    """Llama with a window over all layers, unless it is null."""

    architecture: ClassVar[Architecture] = "mistral"
    qkv_bias_by_nature: ClassVar[bool | None] = False
    o_bias_by_nature: ClassVar[bool | None] = False
    mlp_bias_by_nature: ClassVar[bool | None] = False
    num_key_value_heads: Count | None = 8
    sliding_window: Count | None = 4096

    @property
    def window(self) -> int | None:
        return self.sliding_window


class MixtralJson(MistralJson):
    """Mistral with experts."""

    architecture: ClassVar[Architecture] = "mixtral"
    default_rope_theta: ClassVar[float] = 1_000_000.0
    rms_norm_eps: Positive = 1e-5
    sliding_window: Count | None = None
    num_local_experts: Count = Field(
        8, validation_alias=AliasChoices("num_local_experts", "num_experts")
    )
    num_experts_per_tok: Count = 2


class Phi3Json(MistralJson):
    """Projections fused in the file; a part of each head rotated, by factors found by search."""

    architecture: ClassVar[Architecture] = "phi3"
    has_partial_rotation: ClassVar[bool] = True
    num_key_value_heads: Count | None = None
    original_max_position_embeddings: Count | None = 4096
    rms_norm_eps: Positive = 1e-5
    sliding_window: Count | None = None
    eos_token_id: TokenIds = (32_000,)


class Qwen2Json(ConfigJson):
    """Biases at query, key and value; a window over the upper layers where it is switched on."""

    architecture: ClassVar[Architecture] = "qwen2"
    qkv_bias_by_nature: ClassVar[bool | None] = True
    o_bias_by_nature: ClassVar[bool | None] = False
    mlp_bias_by_nature: ClassVar[bool | None] = False
    reads_layer_types: ClassVar[bool] = True
    num_key_value_heads: Count | None = 32
    eos_token_id: TokenIds = ()
    bos_token_id: TokenId | None = None
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: int = 28

    @property
    def window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def own_layer_types(self) -> tuple[str, ...]:
        return tuple(
            SLIDING if self.window is not None and index >= self.max_window_layers else FULL
            for index in range(self.num_hidden_layers)
        )


class Qwen3Json(Qwen2Json):
    """Qwen2 with normalised queries and keys, and biases only by a flag."""

    architecture: ClassVar[Architecture] = "qwen3"
    qkv_bias_by_nature: ClassVar[bool | None] = None
    o_bias_by_nature: ClassVar[bool | None] = None
    has_qk_norm: ClassVar[bool] = True
    head_dim: Count | None = 128


class Qwen3MoeJson(Qwen3Json):
    """Qwen3 with experts in some layers, and its window over all of them."""

    architecture: ClassVar[Architecture] = "qwen3_moe"
    reads_layer_types: ClassVar[bool] = False
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = None
    num_experts: Annotated[int, Field(ge=0)] = Field(
        128, validation_alias=AliasChoices("num_experts", "num_local_experts")
    )
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[int, ...] | None = Field(None, strict=False)

    @property
    def own_layer_types(self) -> tuple[str, ...]:
        return (SLIDING if self.window is not None else FULL,) * self.num_hidden_layers

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        dense = set(self.mlp_only_layers or ())
        return tuple(
            index
            for index in range(self.num_hidden_layers)
            if self.num_experts
            and index not in dense
            and not (index + 1) % self.decoder_sparse_step
        )


class Gemma2Json(ConfigJson):
    """Every other layer local; scores and logits capped."""

    architecture: ClassVar[Architecture] = "gemma2"
    mlp_bias_by_nature: ClassVar[bool | None] = False
    reads_layer_types: ClassVar[bool] = True
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    max_position_embeddings: Count = 8192
    tie_word_embeddings: bool = True
    eos_token_id: TokenIds = (1,)
    bos_token_id: TokenId | None = 2
    hidden_activation: str | None = None
    query_pre_attn_scalar: Positive = 256
    sliding_window: Count | None = 4096
    final_logit_softcapping: Positive | None = 30.0
    attn_logit_softcapping: Positive | None = 50.0

    @property
    def activation_name(self) -> str:
        return self.hidden_activation or "gelu_pytorch_tanh"

    @property
    def window(self) -> int | None:
        return self.sliding_window

    @property
    def own_layer_types(self) -> tuple[str, ...]:
        return (SLIDING, FULL) * (self.num_hidden_layers // 2) + (SLIDING,) * (
            self.num_hidden_layers % 2
        )


class Gemma3Json(Gemma2Json):
    """Mostly local layers, which rotate by a base of their own; queries and keys normalised."""

    architecture: ClassVar[Architecture] = "gemma3"
    default_rope_theta: ClassVar[float] = 1_000_000.0
    has_qk_norm: ClassVar[bool] = True
    # The text part of a published vision model says little about itself.
    vocab_size: Count = 262_208
    hidden_size: Count = 2304
    intermediate_size: Count = 9216
    num_hidden_layers: NumLayers = 26
    num_attention_heads: Count = 8
    max_position_embeddings: Count = 131_072
    final_logit_softcapping: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    sliding_window_pattern: Count = 6
    rope_local_base_freq: Positive = 10_000.0

    @property
    def own_layer_types(self) -> tuple[str, ...]:
        return tuple(
            SLIDING if (index + 1) % self.sliding_window_pattern else FULL
            for index in range(self.num_hidden_layers)
        )
