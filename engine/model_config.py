"""The shape of a decoder-only model: everything the engine must know before it reads weights."""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "qwen2"]


@dataclass(frozen=True, slots=True)
class LinearRopeScaling:
    """Positions are divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Low frequencies are divided by `factor`, high ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    # The context length of the model before it was stretched, in tokens.
    original_max_position_embeddings: int


RopeScaling = LinearRopeScaling | Llama3RopeScaling


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A Llama or Qwen2 decoder. Built by `engine.model_folder`, which checks every value."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    # Query heads; a multiple of num_kv_heads.
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    # The longest context, prompt and output together, in tokens.
    max_position_embeddings: int
    # The output projection is the embedding table.
    tie_word_embeddings: bool
    # Bias of the query, key and value projections (always in Qwen2, by a flag in Llama).
    qkv_bias: bool
    # Bias of the attention output projection (never in Qwen2).
    o_bias: bool
    # Bias of the gate, up and down projections.
    mlp_bias: bool
    # The dtype the folder was saved in, as torch spells it: "float32", "bfloat16", "float16".
    torch_dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
