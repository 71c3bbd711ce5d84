"""The shape of a decoder-only model: everything the engine must know before it reads weights."""

from dataclasses import dataclass
from typing import Literal

from engine.rope_config import Rope

Architecture = Literal[
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3", "phi3"
]
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """How one layer weighs the tokens that a query sees."""

    # Scores are multiplied by it; usually head_dim ** -0.5.
    scale: float
    # A query sees itself and the window - 1 tokens before it; None: all tokens before it.
    sliding_window: int | None = None
    # Scores s become cap * tanh(s / cap) before the softmax (Gemma 2); None leaves them.
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class MixtureConfig:
    """A mixture of experts: a router sends each token to a few of many small MLPs."""

    num_experts: int
    # Experts that a token visits.
    num_experts_per_token: int
    # Of one expert.
    intermediate_size: int
    # The weights of a token's experts are divided by their sum.
    normalizes_weights: bool
    # The layers that have experts; the others have one MLP of the model's intermediate_size.
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a router and a worker must know of any decoder, whoever computes it."""

    # For people: a family, or the name of the library's class.
    architecture: str
    vocab_size: int
    # The longest context, prompt and output together, in tokens: what config.json says, stretched
    # (engine/context_length.py).
    max_position_embeddings: int
    # The dtype the folder was saved in, as torch spells it: "float32", "bfloat16", "float16".
    torch_dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    # Names the rotation where it is another one than that of the whole context, because a shorter
    # one is served; else empty. Processes that differ in it may not serve a request together.
    rope_choice: str = ""
    # What whoever serves the model should know at its start, a sentence each.
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(ModelShape):
    """A decoder of a family that the engine computes. Built by `engine.model_folder`."""

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_layers: int
    # Query heads; a multiple of num_kv_heads.
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    # The output projection is the embedding table.
    tie_word_embeddings: bool
    # Bias of the query, key and value projections.
    qkv_bias: bool
    # Bias of the attention output projection.
    o_bias: bool
    # Bias of the gate, up and down projections.
    mlp_bias: bool
    activation: Activation = "silu"
    # Attention scores are multiplied by it; None: head_dim ** -0.5.
    attention_scale: float | None = None
    # See LayerAttention; the cap of all layers.
    attention_softcap: float | None = None
    # Logits l become cap * tanh(l / cap).
    logit_softcap: float | None = None
    # Layers of local attention, and their window: None where no context can outgrow it.
    sliding_layers: tuple[int, ...] = ()
    sliding_window: int | None = None
    # The rotation of the sliding layers where it is another one than `rope` (Gemma 3).
    sliding_rope: Rope | None = None
    # Queries and keys are normalised per head, before they are rotated.
    qk_norm: bool = False
    # Gemma's: weights of norms are stored less one, what a sublayer gives is normalised before it
    # is added, and embeddings are multiplied by hidden_size ** 0.5.
    is_gemma: bool = False
    mixture: MixtureConfig | None = None

    @property
    def layer_attention(self) -> tuple[LayerAttention, ...]:
        """One entry a layer."""
        scale = self.attention_scale or self.head_dim**-0.5
        sliding = set(self.sliding_layers)
        return tuple(
            LayerAttention(
                scale, self.sliding_window if index in sliding else None, self.attention_softcap
            )
            for index in range(self.num_layers)
        )

    @property
    def layer_ropes(self) -> tuple[Rope, ...]:
        """The rotation of each layer."""
        if self.sliding_rope is None:
            return (self.rope,) * self.num_layers
        sliding = set(self.sliding_layers)
        return tuple(
            self.sliding_rope if index in sliding else self.rope for index in range(self.num_layers)
        )
