"""What the compiled kernels are called with: the structures of engine/native/kernels.h.

Pointers are addresses; whoever fills them in keeps the memory alive during the call.
"""

import ctypes

_int64, _float, _pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class ProductCall(ctypes.Structure):
    """tandem_product of the C source."""

    _fields_ = (
        ("rows", _pointer),
        ("matrix", _pointer),
        ("out", _pointer),
        ("num_rows", _int64),
        ("inner", _int64),
        ("columns", _int64),
        ("num_threads", _int64),
    )


class NormCall(ctypes.Structure):
    """tandem_norm of the C source."""

    _fields_ = (
        ("rows", _pointer),
        ("add", _pointer),
        ("weight", _pointer),
        ("out", _pointer),
        ("num_rows", _int64),
        ("width", _int64),
        ("is_bfloat16", _int64),
        ("weight_is_bfloat16", _int64),
        ("num_threads", _int64),
        ("eps", _float),
    )


class GateCall(ctypes.Structure):
    """tandem_gate of the C source."""

    _fields_ = (
        ("rows", _pointer),
        ("out", _pointer),
        ("num_rows", _int64),
        ("width", _int64),
        ("is_bfloat16", _int64),
        ("is_gelu", _int64),
        ("num_threads", _int64),
    )


class TurnCall(ctypes.Structure):
    """tandem_turn of the C source."""

    _fields_ = (
        ("rows", _pointer),
        ("out", _pointer),
        ("cos", _pointer),
        ("sin", _pointer),
        ("positions", _pointer),
        ("query_weight", _pointer),
        ("key_weight", _pointer),
        ("num_tokens", _int64),
        ("num_queries", _int64),
        ("num_keys", _int64),
        ("num_heads", _int64),
        ("head_dim", _int64),
        ("rotary_dim", _int64),
        ("is_bfloat16", _int64),
        ("num_threads", _int64),
        ("query_eps", _float),
        ("key_eps", _float),
    )


class AttentionStep(ctypes.Structure):
    """tandem_step of the C source."""

    _fields_ = (
        ("pool", _pointer),
        ("is_bfloat16", _int64),
        ("block_stride", _int64),
        ("group_stride", _int64),
        ("layer_stride", _int64),
        ("to_values", _int64),
        ("head_stride", _int64),
        ("heads_of_group", _int64),
        ("num_kv_heads", _int64),
        ("block_size", _int64),
        ("head_dim", _int64),
        ("group_size", _int64),
        ("num_seqs", _int64),
        ("num_tokens", _int64),
        ("starts", _pointer),
        ("num_queries", _pointer),
        ("block_tables", _pointer),
        ("table_width", _int64),
        ("slot_mapping", _pointer),
        ("num_rounds", _int64),
        ("rounds", _pointer),
        ("tiles", _pointer),
        ("members", _pointer),
        ("shared_tokens", _pointer),
        ("longest_member", _int64),
        ("states", _pointer),
    )


class AttentionCall(ctypes.Structure):
    """tandem_layer of the C source."""

    _fields_ = (
        ("layer", _int64),
        ("scale", _float),
        ("softcap", _float),
        ("sliding_window", _int64),
        ("query", _pointer),
        ("key", _pointer),
        ("value", _pointer),
        ("query_stride", _int64),
        ("key_stride", _int64),
        ("value_stride", _int64),
        ("out", _pointer),
        ("out_is_bfloat16", _int64),
    )


class LayerCalls(ctypes.Structure):
    """tandem_decoder_layer of the C source: every call of a layer, without what a step fills in."""

    _fields_ = (
        ("input_norm", NormCall),
        ("mlp_norm", NormCall),
        ("attention_out_norm", NormCall),
        ("mlp_out_norm", NormCall),
        ("qkv", ProductCall),
        ("attention_out", ProductCall),
        ("gate_up", ProductCall),
        ("down", ProductCall),
        ("qkv_bias", _pointer),
        ("attention_out_bias", _pointer),
        ("gate_up_bias", _pointer),
        ("down_bias", _pointer),
        ("turn", TurnCall),
        ("gate", GateCall),
        ("attention", AttentionCall),
    )


class PassCall(ctypes.Structure):
    """tandem_pass of the C source."""

    _fields_ = (
        ("layers", _pointer),
        ("step", _pointer),
        ("positions", _pointer),
        ("hidden", _pointer),
        ("normed", _pointer),
        ("out", _pointer),
        ("fused", _pointer),
        ("heads", _pointer),
        ("attended", _pointer),
        ("gate_up", _pointer),
        ("gated", _pointer),
        ("num_layers", _int64),
        ("num_rows", _int64),
        ("num_threads", _int64),
        ("attention_threads", _int64),
    )
