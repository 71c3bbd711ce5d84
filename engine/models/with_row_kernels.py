"""A decoder's parts, with their work between products given to row kernels."""

from collections.abc import Sequence
from dataclasses import replace

from engine.model_config import ModelConfig
from engine.models.decoder_weights import DecoderWeights, LayerWeights
from engine.models.mlp import DenseMlp, MixtureMlp, Mlp
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable
from engine.models.row_kernels import RowKernels, TurnHeads


def with_row_kernels(
    config: ModelConfig, weights: DecoderWeights, rows: RowKernels
) -> DecoderWeights:
    """Over the same matrices; `weights` stays as it is, so both may compute, by turns."""
    assert weights.kernels is None, "these are for CPUs"
    assert weights.embedding.dtype == rows.dtype
    layers, final_norm = weights.layers, _norm(weights.final_norm, rows)
    turned = _with_head_norms(config, layers, rows)
    return replace(
        weights,
        layers=tuple(_layer(layer, rows) for layer in turned or layers),
        final_norm=final_norm,
        row_kernels=rows,
        turns_heads=turned is not None,
    )


def turns_of(
    weights: DecoderWeights, tables: Sequence[RopeTable], head_dim: int
) -> tuple[TurnHeads, ...]:
    """For each of the tables; none where torch, or kernels for CPUs, rotate."""
    rows = weights.row_kernels
    if rows is None or not weights.turns_heads:
        return ()
    return tuple(rows.turn(table, head_dim) for table in tables)


def _with_head_norms(
    config: ModelConfig, layers: tuple[LayerWeights, ...], rows: RowKernels
) -> tuple[LayerWeights, ...] | None:
    """For heads in the model's dtype; None where a layer's heads have to be float32, by torch."""
    if not all(rows.has_turn(config.head_dim, rope.rotary_dim) for rope in config.layer_ropes):
        return None
    turned = []
    for layer in layers:
        query, key = layer.query_norm, layer.key_norm
        if query is not None and key is not None:
            query, key = rows.norm(query), rows.norm(key)
            if query is None or key is None:
                return None
        turned.append(replace(layer, query_norm=query, key_norm=key))
    return tuple(turned)


def _layer(layer: LayerWeights, rows: RowKernels) -> LayerWeights:
    return replace(
        layer,
        input_norm=_norm(layer.input_norm, rows),
        mlp_norm=_norm(layer.mlp_norm, rows),
        attention_out_norm=_optional_norm(layer.attention_out_norm, rows),
        mlp_out_norm=_optional_norm(layer.mlp_out_norm, rows),
        mlp=_mlp(layer.mlp, rows),
    )


def _norm(norm: RmsNorm, rows: RowKernels) -> RmsNorm:
    return rows.norm(norm) or norm


def _optional_norm(norm: RmsNorm | None, rows: RowKernels) -> RmsNorm | None:
    return None if norm is None else _norm(norm, rows)


def _mlp(mlp: Mlp, rows: RowKernels) -> Mlp:
    if isinstance(mlp, MixtureMlp):
        return mlp.with_experts(tuple(_dense(expert, rows) for expert in mlp.experts))
    return _dense(mlp, rows)


def _dense(mlp: DenseMlp, rows: RowKernels) -> DenseMlp:
    gated = rows.gated(mlp.activation, mlp.gate_up.num_outputs // 2)
    return mlp if gated is None else mlp.with_gated(gated)
