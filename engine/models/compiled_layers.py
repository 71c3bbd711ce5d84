"""All layers of a decoder in one call (engine/native/layers.c).

The kernels, their order and so the bits are those of the layers one by one; what is saved is the
way through Python and torch between them, some thousand calls in each step.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attention.native import NativeStep
from engine.linear import Linear
from engine.model_config import LayerAttention, ModelConfig
from engine.models.decoder_weights import DecoderWeights, LayerWeights
from engine.models.mlp import DenseMlp
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable
from engine.native.calls import (
    AttentionCall,
    GateCall,
    LayerCalls,
    NormCall,
    PassCall,
    ProductCall,
    TurnCall,
)
from engine.native.library import KernelLibrary

# Of each piece of the room that a call needs.
_ALIGNMENT = 64
_BFLOAT16_BYTES, _FLOAT_BYTES = 2, 4


def compile_layers(
    config: ModelConfig, weights: DecoderWeights, tables: Sequence[RopeTable]
) -> "CompiledLayers | None":
    """None where a layer has a part that the kernel does not know. `tables`: one for each layer."""
    kernels, dtype = weights.kernels, weights.embedding.dtype
    if kernels is None or dtype != torch.bfloat16 or not weights.layers:
        return None
    if not all(isinstance(layer.mlp, DenseMlp) for layer in weights.layers):
        return None
    if not all(_is_in_tiles(linear) for linear in weights.layer_linears):
        return None
    return CompiledLayers(config, weights, tables, kernels)


class CompiledLayers:
    """The layers of one model, in bfloat16 on the matrix unit. Stateless between calls."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        tables: Sequence[RopeTable],
        kernels: KernelLibrary,
    ) -> None:
        self._run = kernels.functions.tandem_run_layers
        # The calls hold addresses only.
        self._owners = (weights, tables)
        self._num_layers = len(weights.layers)
        self._calls = (LayerCalls * self._num_layers)(
            *(
                _calls_of(config, layer, index, table, config.layer_attention[index])
                for index, (layer, table) in enumerate(zip(weights.layers, tables, strict=True))
            )
        )
        attended = config.num_heads * config.head_dim
        fused = attended + 2 * config.num_kv_heads * config.head_dim
        inner = max(_mlp_of(layer).down.num_inputs for layer in weights.layers)
        # Bytes of a row: normed, out, fused, heads, attended, gate_up, gated.
        self._row_bytes = (
            config.hidden_size * _BFLOAT16_BYTES,
            config.hidden_size * _BFLOAT16_BYTES,
            fused * _BFLOAT16_BYTES,
            fused * _FLOAT_BYTES,
            attended * _BFLOAT16_BYTES,
            2 * inner * _BFLOAT16_BYTES,
            inner * _BFLOAT16_BYTES,
        )

    def __call__(self, hidden: Tensor, positions: Tensor, attention: NativeStep) -> Tensor:
        """What the layers make of embedded tokens [num_tokens, hidden_size], in the same memory.

        `positions` [num_tokens] int64. Both are contiguous.
        """
        num_rows = hidden.shape[0]
        sizes = [-(-num_rows * size // _ALIGNMENT) * _ALIGNMENT for size in self._row_bytes]
        room = torch.empty(sum(sizes), dtype=torch.uint8)
        start = room.data_ptr()
        pieces = [start + sum(sizes[:index]) for index in range(len(sizes))]
        call = PassCall(
            ctypes.addressof(self._calls),
            ctypes.addressof(attention.description),
            positions.data_ptr(),
            hidden.data_ptr(),
            *pieces,
            self._num_layers,
            num_rows,
            torch.get_num_threads(),
            attention.num_threads,
        )
        self._run(ctypes.byref(call))
        return hidden


def _is_in_tiles(linear: Linear) -> bool:
    return linear.tiled is not None and linear.tiled.is_whole


def _mlp_of(layer: LayerWeights) -> DenseMlp:
    assert isinstance(layer.mlp, DenseMlp), "compile_layers looked"
    return layer.mlp


def _calls_of(
    config: ModelConfig,
    layer: LayerWeights,
    index: int,
    table: RopeTable,
    attention: LayerAttention,
) -> LayerCalls:
    mlp = _mlp_of(layer)
    return LayerCalls(
        input_norm=_norm(layer.input_norm),
        mlp_norm=_norm(layer.mlp_norm),
        attention_out_norm=_norm(layer.attention_out_norm),
        mlp_out_norm=_norm(layer.mlp_out_norm),
        qkv=_product(layer.qkv),
        attention_out=_product(layer.attention_out),
        gate_up=_product(mlp.gate_up),
        down=_product(mlp.down),
        qkv_bias=_address(layer.qkv.bias),
        attention_out_bias=_address(layer.attention_out.bias),
        gate_up_bias=_address(mlp.gate_up.bias),
        down_bias=_address(mlp.down.bias),
        turn=_turn(config, layer, table),
        gate=GateCall(
            width=mlp.down.num_inputs, is_bfloat16=True, is_gelu=mlp.activation == "gelu_tanh"
        ),
        attention=AttentionCall(
            layer=index,
            scale=attention.scale,
            softcap=attention.softcap or 0.0,
            sliding_window=attention.sliding_window or 0,
        ),
    )


def _norm(norm: RmsNorm | None) -> NormCall:
    if norm is None:
        return NormCall()
    return NormCall(
        weight=norm.weight.data_ptr(),
        width=norm.width,
        is_bfloat16=True,
        weight_is_bfloat16=norm.weight.dtype == torch.bfloat16,
        eps=norm.eps,
    )


def _product(linear: Linear) -> ProductCall:
    assert linear.tiled is not None, "compile_layers looked"
    return linear.tiled.call()


def _turn(config: ModelConfig, layer: LayerWeights, table: RopeTable) -> TurnCall:
    query, key = layer.query_norm, layer.key_norm
    return TurnCall(
        cos=table.cos.data_ptr(),
        sin=table.sin.data_ptr(),
        query_weight=_address(query.weight if query else None),
        key_weight=_address(key.weight if key else None),
        num_queries=config.num_heads,
        num_keys=config.num_kv_heads,
        num_heads=config.num_heads + 2 * config.num_kv_heads,
        head_dim=config.head_dim,
        rotary_dim=2 * table.cos.shape[1],
        is_bfloat16=True,
        query_eps=query.eps if query else 0.0,
        key_eps=key.eps if key else 0.0,
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
