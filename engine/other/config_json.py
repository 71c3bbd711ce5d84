"""config.json of a family that the engine does not compute itself: what all families say alike.

The worker lets the transformers library compute such a model and tries, at its start, whether that
gives what the library gives by itself (engine/other/trial.py). What no trial of a few tokens would
show is refused here, by name. Nothing here imports torch or transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from engine.config_schema import FULL, SLIDING, Count, Dtype, TokenId, TokenIds
from engine.json_file import JsonSchema, parse
from engine.model_config import ModelShape
from engine.model_folder_errors import InvalidModelField, UnsupportedModelOption

# How the names of decoders end that answer with the next token.
_ENDINGS = ("ForCausalLM", "LMHeadModel")
# Rotations whose angles follow from the longest sequence of a batch.
_ROPES_BY_BATCH = ("dynamic", "longrope", "su")
_CONTEXT_FIELDS = AliasChoices(
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length"
)


def may_be_computed(architecture: str) -> bool:
    """Whether the name is one of a decoder that transformers might know."""
    return architecture.endswith(_ENDINGS)


def read_other_config(
    path: Path,
    fields: Mapping[str, Any],
    eos_token_ids: tuple[int, ...],
    max_model_len: int | None,
) -> ModelShape:
    """What routers and workers must know of the model; the rest is the library's.

    Raises: InvalidModelField, UnsupportedModelOption.
    """
    refuse_what_no_trial_shows(path, fields)
    config = parse(_OtherJson, path, fields)
    eos_token_ids = eos_token_ids or config.eos_token_id
    if any(token_id >= config.vocab_size for token_id in eos_token_ids):
        raise InvalidModelField(path, "eos_token_id", "must be below vocab_size")
    name = fields["architectures"][0]
    remarks = [f"{name} is computed by the transformers library, which takes longer"]
    if max_model_len is not None and max_model_len > config.context:
        remarks.append(
            f"--max-model-len asks for {max_model_len} tokens, the model's context ends at "
            f"{config.context}"
        )
    return ModelShape(
        architecture=name,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context,
        torch_dtype=config.dtype or "float32",
        eos_token_ids=eos_token_ids,
        bos_token_id=config.bos_token_id,
        remarks=tuple(remarks),
    )


class _OtherJson(JsonSchema):
    vocab_size: Count
    context: Count = Field(validation_alias=_CONTEXT_FIELDS)
    dtype: Dtype = Field(None, validation_alias=AliasChoices("dtype", "torch_dtype"))
    eos_token_id: TokenIds = ()
    bos_token_id: TokenId | None = None


def refuse_what_no_trial_shows(path: Path, fields: Mapping[str, Any]) -> None:
    """`fields` as config.json says them, or as the library does, which adds its own defaults.

    Raises: UnsupportedModelOption.
    """
    if fields.get("is_encoder_decoder"):
        raise UnsupportedModelOption(path, "is_encoder_decoder", "use a decoder-only model")
    kinds = {str(kind) for kind in fields.get("layer_types") or ()} - {FULL, SLIDING}
    if kinds:
        option = f"layer_types {', '.join(sorted(kinds))}"
        raise UnsupportedModelOption(path, option, "use a model of full and sliding attention")
    for name in ("rope_scaling", "rope_parameters"):
        for kind in _rope_kinds(fields.get(name)) & set(_ROPES_BY_BATCH):
            hint = "a request's tokens would depend on the others of its batch; use another model"
            raise UnsupportedModelOption(path, f"{name} {kind!r}", hint)
    for name in ("attention_chunk_size", "dual_chunk_attention_config"):
        if fields.get(name) is not None:
            hint = "use a model of full and sliding attention"
            raise UnsupportedModelOption(path, name, hint)


def _rope_kinds(rope: object) -> set[object]:
    """Of all layers: what lies inside may be one rotation for each kind of layer."""
    if not isinstance(rope, Mapping):
        return set()
    own = rope.get("rope_type", rope.get("type"))
    inner = (_rope_kinds(value) for value in rope.values())
    return set().union(*inner, {own} if isinstance(own, str) else ())
