"""Reads the tensors of a checked model folder into the form the forward pass wants.

Files are mapped, so only one fused matrix at a time is in memory twice. Every expected tensor is
looked up by name and shape before any is copied: a wrong folder fails in milliseconds.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.model_config import ModelConfig
from engine.model_folder_errors import InvalidWeightFile, ModelFolderError
from engine.models.decoder_weights import DecoderWeights, LayerWeights


class TensorMissing(ModelFolderError):
    """No weight file of the folder holds a tensor that the configuration asks for."""

    code = "model_tensor_missing"

    def __init__(self, folder: Path, tensor: str) -> None:
        super().__init__(
            folder, f"no weight file holds {tensor}; fetch all shards, or correct config.json"
        )
        self.tensor = tensor


class TensorShapeMismatch(ModelFolderError):
    """A tensor has not the shape that config.json implies."""

    code = "model_tensor_shape"

    def __init__(
        self, path: Path, tensor: str, expected: tuple[int, ...], actual: tuple[int, ...]
    ) -> None:
        super().__init__(
            path,
            f"{tensor} has shape {list(actual)}, config.json implies {list(expected)}; "
            "config.json and the weights are from different models",
        )
        self.tensor, self.expected, self.actual = tensor, expected, actual


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, by its name in the files."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    # name -> (outputs, inputs, has a bias)
    projections = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.o_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
        for name, (outputs, inputs, has_bias) in projections.items():
            shapes[f"{prefix}{name}.weight"] = (outputs, inputs)
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = (outputs,)
    return shapes


def load_decoder_weights(
    config: ModelConfig, weight_files: Sequence[Path], dtype: torch.dtype, device: torch.device
) -> DecoderWeights:
    """Load and fuse all weights. Tensors that the model does not use are ignored.

    Raises: TensorMissing, TensorShapeMismatch, InvalidWeightFile.
    """
    with ExitStack() as stack:
        located = _locate(stack, weight_files)
        for name, shape in expected_shapes(config).items():
            _check(name, shape, located, weight_files[0].parent)
        return _Reader(located, dtype, device).decoder(config)


@dataclass(frozen=True, slots=True)
class _Located:
    """An open weight file that holds a tensor."""

    path: Path
    # safetensors ships no types for the object that safe_open returns.
    handle: Any


def _locate(stack: ExitStack, weight_files: Sequence[Path]) -> dict[str, _Located]:
    located: dict[str, _Located] = {}
    for path in weight_files:
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InvalidWeightFile(path, f"cannot be opened ({error})") from None
        for name in handle.keys():  # noqa: SIM118 -- not a mapping
            located[name] = _Located(path, handle)
    return located


def _check(
    name: str, shape: tuple[int, ...], located: Mapping[str, _Located], folder: Path
) -> None:
    found = located.get(name)
    if found is None:
        raise TensorMissing(folder, name)
    actual = tuple(found.handle.get_slice(name).get_shape())
    if actual != shape:
        raise TensorShapeMismatch(found.path, name, shape, actual)


class _Reader:
    """Reads, converts and fuses tensors that are known to exist."""

    def __init__(
        self, located: Mapping[str, _Located], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._located = located
        self._dtype = dtype
        self._device = device

    def decoder(self, config: ModelConfig) -> DecoderWeights:
        embedding = self._vector("model.embed_tokens.weight")
        tied = config.tie_word_embeddings
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(
                self._layer(f"model.layers.{index}.", config) for index in range(config.num_layers)
            ),
            final_norm=self._vector("model.norm.weight"),
            lm_head=embedding.t().contiguous() if tied else self._matrix("lm_head"),
        )

    def _layer(self, prefix: str, config: ModelConfig) -> LayerWeights:
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = tuple(attention + name for name in ("q_proj", "k_proj", "v_proj"))
        gate_up = (mlp + "gate_proj", mlp + "up_proj")
        return LayerWeights(
            input_norm=self._vector(prefix + "input_layernorm.weight"),
            qkv=self._matrix(*qkv),
            qkv_bias=self._bias(config.qkv_bias, *qkv),
            attention_out=self._matrix(attention + "o_proj"),
            attention_out_bias=self._bias(config.o_bias, attention + "o_proj"),
            mlp_norm=self._vector(prefix + "post_attention_layernorm.weight"),
            gate_up=self._matrix(*gate_up),
            gate_up_bias=self._bias(config.mlp_bias, *gate_up),
            down=self._matrix(mlp + "down_proj"),
            down_bias=self._bias(config.mlp_bias, mlp + "down_proj"),
        )

    def _matrix(self, *names: str) -> Tensor:
        """[inputs, sum of outputs], contiguous: the named projections side by side."""
        parts = [self._read(name + ".weight") for name in names]
        fused = torch.cat(parts) if len(parts) > 1 else parts[0]
        return fused.to(self._device, self._dtype).t().contiguous()

    def _bias(self, is_present: bool, *names: str) -> Tensor | None:
        if not is_present:
            return None
        return torch.cat([self._read(name + ".bias") for name in names]).to(
            self._device, self._dtype
        )

    def _vector(self, name: str) -> Tensor:
        """A tensor as it is, in memory of its own (the file will be unmapped)."""
        return self._read(name).to(self._device, self._dtype, copy=True)

    def _read(self, name: str) -> Tensor:
        found = self._located[name]
        try:
            tensor: Tensor = found.handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InvalidWeightFile(found.path, f"{name} cannot be read ({error})") from None
        return tensor
