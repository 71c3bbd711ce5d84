"""A small Llama for training: dense attention, no KV cache. Serving uses the engine's own model.

Parameter names and arithmetic are those of Hugging Face's LlamaForCausalLM, so that the weights it
saves need no conversion.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """Sizes of the network; the defaults are those of the bundled model."""

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 4
    # Two, so that a tensor-parallel pair can split the KV heads.
    num_kv_heads: int = 2
    # The smallest size that flashinfer's kernels take.
    head_dim: int = 64
    max_positions: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class _Attention(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._dim = (
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
        )
        hidden, dim = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(hidden, shape.num_heads * dim, bias=False)
        self.k_proj = nn.Linear(hidden, shape.num_kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(hidden, shape.num_kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self._heads, self._dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self._kv_heads, self._dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self._kv_heads, self._dim).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        repeats = self._heads // self._kv_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        # Not spelled out: compiled by torch 2.13 for the CPU in bfloat16, the gradient of a matrix
        # product with transposed keys is NaN.
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the two halves of a head. cos, sin: [length, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class _FeedForward(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        hidden, inner = shape.hidden_size, shape.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class _Layer(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.mlp = _FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Trunk(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)

    def forward(self, token_ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(token_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed


class TrainingNetwork(nn.Module):
    """The whole network; its output layer is the transposed embedding."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Trunk(shape)
        exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        frequencies = shape.rope_theta**-exponents
        angles = torch.outer(torch.arange(shape.max_positions).float(), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("_cos", angles.cos(), persistent=False)
        self.register_buffer("_sin", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        # Layers that write to the residual stream start smaller, so that its variance does not
        # grow with depth (GPT-2, Radford et al. 2019, section 2.3).
        residual_std = 0.02 / (2 * self.shape.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual_std if is_residual else 0.02)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits. Shapes: token_ids [batch, length] int64; returns [batch, length, vocab_size]."""
        length = token_ids.shape[1]
        cos, sin = self.get_buffer("_cos")[:length], self.get_buffer("_sin")[:length]
        x = self.model(token_ids, cos, sin)
        return functional.linear(x, self.model.embed_tokens.weight)

    def losses(self, token_ids: Tensor) -> Tensor:
        """Loss of each prediction.

        Shapes: token_ids [batch, length + 1] int64; returns [batch * length] float32.
        """
        logits = self(token_ids[:, :-1]).float()
        return functional.cross_entropy(
            logits.flatten(0, 1), token_ids[:, 1:].flatten(), reduction="none"
        )
