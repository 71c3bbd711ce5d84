"""The rotary positions of config.json: both spellings, every scaling in use.

A scaling that transformers chooses by the length of the sequence is resolved here once and for all,
by the context that is served, because the KV of a token must not depend on how long its sequence
has become (docs/decisions/rope-chosen-once.md).
Source: the values' meaning as in transformers' modeling_rope_utils.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, Field

from engine.config_schema import FULL, SLIDING, ConfigJson, Count, Gemma3Json, Phi3Json, Positive
from engine.context_length import stretched_context
from engine.json_file import JsonSchema, parse
from engine.model_folder_errors import InvalidModelField, UnsupportedModelOption
from engine.rope_config import (
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnRopeScaling,
)

_SUPPORTED = "default, linear, dynamic, llama3, yarn or longrope"
_NOT_COMPUTED = (
    "alpha",
    "mrope_section",
    "short_mscale",
    "long_mscale",
    "llama_4_scaling_beta",
    "attn_factor",
    "extrapolation_factor",
)
_NEUTRAL_IF_ONE = ("attn_factor", "extrapolation_factor")


class _RopeJson(JsonSchema):
    rope_type: str = Field("default", validation_alias=AliasChoices("rope_type", "type"))
    rope_theta: Positive | None = None
    partial_rotary_factor: float | None = Field(None, gt=0, le=1)
    factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    attention_factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[Positive, ...] | None = Field(None, strict=False)
    long_factor: tuple[Positive, ...] | None = Field(None, strict=False)
    # Of variants that the engine does not compute; those of _NEUTRAL_IF_ONE may be one.
    alpha: float | None = None
    mrope_section: object = None
    short_mscale: float | None = None
    long_mscale: float | None = None
    llama_4_scaling_beta: float | None = None
    attn_factor: float | None = None
    extrapolation_factor: float | None = None


@dataclass(frozen=True, slots=True)
class Ropes:
    """The rotation of the model, and of its sliding layers where it is another one."""

    rope: Rope
    sliding_rope: Rope | None
    # The longest context that can be served, in tokens.
    context: int
    # Where the served context decides: one of at most so many tokens is rotated as it was trained.
    border: int | None
    # See ModelConfig.
    choice: str = ""


def read_ropes(
    path: Path, config: ConfigJson, head_dim: int, max_model_len: int | None = None
) -> Ropes:
    """Both rotations of a model for contexts of at most `max_model_len` tokens; None: the longest.

    Raises: InvalidModelField, UnsupportedModelOption.
    """
    whole = _read(path, config, head_dim, None)
    chosen = _read(path, config, head_dim, min(whole.context, max_model_len or whole.context))
    if chosen == whole:
        return whole
    return replace(chosen, choice=repr((chosen.rope, chosen.sliding_rope)))


def _read(path: Path, config: ConfigJson, head_dim: int, served: int | None) -> Ropes:
    # In a file with both, transformers reads the older field.
    name = "rope_scaling" if config.rope_scaling else "rope_parameters"
    fields = config.rope_scaling or config.rope_parameters or {}
    is_by_layer = FULL in fields or SLIDING in fields
    if isinstance(config, Gemma3Json) and fields and name == "rope_parameters" and not is_by_layer:
        raise InvalidModelField(path, name, f"must hold {FULL} and {SLIDING}")
    reader = _Reader(path, name, config, head_dim, served)
    default_theta = config.rope_theta or config.default_rope_theta
    if isinstance(config, Gemma3Json):
        full = fields.get(FULL) if is_by_layer else fields
        # An older file's scaling is for the full layers only.
        sliding = fields.get(SLIDING) if is_by_layer else {}
        rope = reader.rope(full, default_theta)
        sliding_rope = reader.rope(sliding, config.rope_local_base_freq)
        return reader.ropes(full, rope, sliding_rope)
    if is_by_layer:
        full = fields.get(FULL)
        rope = reader.rope(full, default_theta)
        sliding_rope = reader.rope(fields.get(SLIDING), default_theta)
        return reader.ropes(full, rope, None if sliding_rope == rope else sliding_rope)
    return reader.ropes(fields, reader.rope(fields, default_theta), None)


class _Reader:
    """Reads the parameters of one kind of layer, for a served context; None: the whole one."""

    def __init__(
        self, path: Path, name: str, config: ConfigJson, head_dim: int, served: int | None
    ) -> None:
        self._path = path
        self._name = name
        self._config = config
        self._head_dim = head_dim
        self._served = served

    def ropes(
        self, fields: Mapping[str, Any] | None, rope: Rope, sliding_rope: Rope | None
    ) -> Ropes:
        """With what the layers of full attention, whose parameters are given, say of lengths."""
        parameters = self._parsed(fields)
        context = self._context(parameters)
        # Beyond it transformers computes a sequence otherwise than below.
        by_type = {
            "dynamic": self._config.max_position_embeddings,
            "longrope": self._original_length(parameters),
        }
        border = by_type.get(self._rope_type(parameters))
        is_crossed = border is not None and border < context
        return Ropes(rope, sliding_rope, context, border if is_crossed else None)

    def _parsed(self, fields: Mapping[str, Any] | None) -> _RopeJson:
        return parse(_RopeJson, self._path, fields or {}, self._name)

    def _context(self, rope: _RopeJson) -> int:
        declared = self._config.max_position_embeddings
        chunks = self._config.dual_chunk_attention_config
        context = declared
        if not isinstance(self._config, Gemma3Json):
            original = self._original_length(rope)
            context = stretched_context(declared, self._rope_type(rope), rope.factor, original)
        return context if chunks is None else min(context, chunks.plain_length)

    def rope(self, fields: Mapping[str, Any] | None, default_theta: float) -> Rope:
        rope = self._parsed(fields)
        for option in _NOT_COMPUTED:
            value = getattr(rope, option)
            if value is not None and not (option in _NEUTRAL_IF_ONE and value == 1.0):
                raise self._unsupported(option, f"use a model with rope type {_SUPPORTED}")
        if rope.factor is not None and "rope_type" not in rope.model_fields_set:
            problem = f"is missing beside factor; it is one of {_SUPPORTED}"
            raise InvalidModelField(self._path, f"{self._name}.rope_type", problem)
        rotary_dim = self._rotary_dim(rope)
        theta = (rope.rope_theta or default_theta) * self._growth_of_base(rope, rotary_dim)
        return Rope(theta, rotary_dim, self._scaling(rope, rotary_dim))

    def _growth_of_base(self, rope: _RopeJson, rotary_dim: int) -> float:
        """What the base is multiplied by: dynamic NTK at the length of the served context."""
        if rope.rope_type != "dynamic":
            return 1.0
        factor = self._present("factor", rope.factor)
        length = self._config.max_position_embeddings
        served = self._served or self._context(rope)
        if served <= length:
            return 1.0
        if rotary_dim == 2:
            problem = "must be above two for rope type dynamic"
            raise InvalidModelField(self._path, "head_dim", problem)
        growth = factor * served / length - (factor - 1.0)
        return float(growth ** (rotary_dim / (rotary_dim - 2)))

    def _rope_type(self, rope: _RopeJson) -> str:
        if isinstance(self._config, Phi3Json) and rope.rope_type in ("su", "yarn"):
            return "longrope"
        return rope.rope_type

    def _rotary_dim(self, rope: _RopeJson) -> int:
        fraction = rope.partial_rotary_factor or self._config.partial_rotary_factor or 1.0
        if fraction != 1.0 and not self._config.has_partial_rotation:
            raise self._unsupported("partial_rotary_factor", "use a model that rotates whole heads")
        rotary_dim = int(self._head_dim * fraction)
        if not rotary_dim or rotary_dim % 2:
            problem = "must leave an even number to rotate in each head"
            raise InvalidModelField(self._path, "partial_rotary_factor", problem)
        return rotary_dim

    def _scaling(self, rope: _RopeJson, rotary_dim: int) -> RopeScaling | None:
        match self._rope_type(rope):
            # dynamic has only another base.
            case "default" | "dynamic":
                return None
            case "linear":
                return LinearRopeScaling(self._present("factor", rope.factor))
            case "llama3":
                return Llama3RopeScaling(
                    factor=self._present("factor", rope.factor),
                    low_freq_factor=self._present("low_freq_factor", rope.low_freq_factor),
                    high_freq_factor=self._present("high_freq_factor", rope.high_freq_factor),
                    original_max_position_embeddings=self._original_length(rope),
                )
            case "yarn":
                return self._yarn(rope)
            case "longrope":
                return self._longrope(rope, rotary_dim)
        raise self._unsupported(
            f"rope type {rope.rope_type!r}", f"use a model with rope type {_SUPPORTED}"
        )

    def _yarn(self, rope: _RopeJson) -> YarnRopeScaling:
        original = self._original_length(rope)
        factor = rope.factor or self._config.max_position_embeddings / original
        attention_factor = rope.attention_factor
        if attention_factor is None and rope.mscale and rope.mscale_all_dim:
            attention_factor = _yarn_mscale(factor, rope.mscale) / _yarn_mscale(
                factor, rope.mscale_all_dim
            )
        return YarnRopeScaling(
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=attention_factor or _yarn_mscale(factor, 1.0),
            beta_fast=rope.beta_fast or 32.0,
            beta_slow=rope.beta_slow or 1.0,
            truncate=rope.truncate,
        )

    def _longrope(self, rope: _RopeJson, rotary_dim: int) -> LongRopeScaling:
        original = self._original_length(rope)
        length = self._config.max_position_embeddings
        factor = rope.factor or length / original
        attention_factor = rope.attention_factor
        if attention_factor is None:
            stretch = math.log(factor) / math.log(original) if factor > 1.0 else 0.0
            attention_factor = math.sqrt(1.0 + stretch)
        by_name = {"short_factor": rope.short_factor, "long_factor": rope.long_factor}
        for name, value in by_name.items():
            if len(self._present(name, value)) != rotary_dim // 2:
                problem = f"must have {rotary_dim // 2} numbers, one for each pair that is rotated"
                raise InvalidModelField(self._path, f"{self._name}.{name}", problem)
        served = self._served or self._context(rope)
        factors = rope.long_factor if served > original else rope.short_factor
        assert factors is not None, "both lists are present"
        return LongRopeScaling(factors, attention_factor)

    def _original_length(self, rope: _RopeJson) -> int:
        """Beside the parameters, inside them, or the whole context."""
        return (
            self._config.original_max_position_embeddings
            or rope.original_max_position_embeddings
            or self._config.max_position_embeddings
        )

    def _present(self, field: str, value: "_ValueT | None") -> "_ValueT":
        if value is None:
            problem = "is missing for this rope type"
            raise InvalidModelField(self._path, f"{self._name}.{field}", problem)
        return value

    def _unsupported(self, option: str, hint: str) -> UnsupportedModelOption:
        return UnsupportedModelOption(self._path, option, hint)


_ValueT = TypeVar("_ValueT")


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0
