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

from engine.linear import Linear
from engine.model_config import ModelConfig
from engine.model_folder_errors import (
    InvalidWeightFile,
    ModelFolderError,
    UnsupportedModelOption,
)
from engine.models.decoder_weights import DecoderWeights, LayerWeights
from engine.models.mlp import DenseMlp, MixtureMlp, Mlp
from engine.models.norm import RmsNorm
from engine.models.tensor_layout import (
    MixtureTensors,
    MlpTensors,
    StackedTensors,
    canonical_name,
    expected_shapes,
    layer_tensors,
)
from engine.native.library import KernelLibrary

# As safetensors spells them; numbers of any other type are a quantised model's.
_PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
_UNQUANTISED_HINT = "use the unquantised weights of the model"


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


def load_decoder_weights(
    config: ModelConfig,
    weight_files: Sequence[Path],
    dtype: torch.dtype,
    device: torch.device,
    kernels: KernelLibrary | None = None,
) -> DecoderWeights:
    """Load and fuse all weights. Tensors that the model does not use are ignored.

    The parts will compute with `kernels`, which are for the CPU, or without them with torch.

    Raises: TensorMissing, TensorShapeMismatch, InvalidWeightFile, UnsupportedModelOption.
    """
    with ExitStack() as stack:
        located = _locate(stack, weight_files)
        for name, shape in expected_shapes(config).items():
            _check(name, shape, located, weight_files[0].parent)
        return _Reader(config, located, dtype, device, kernels).decoder()


@dataclass(frozen=True, slots=True)
class _Located:
    """An open weight file that holds a tensor."""

    path: Path
    # safetensors ships no types for the object that safe_open returns.
    handle: Any
    # The tensor's name in this file.
    name: str


def _locate(stack: ExitStack, weight_files: Sequence[Path]) -> dict[str, _Located]:
    located: dict[str, _Located] = {}
    for path in weight_files:
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InvalidWeightFile(path, f"cannot be opened ({error})") from None
        for name in handle.keys():  # noqa: SIM118 -- not a mapping
            located[canonical_name(name)] = _Located(path, handle, name)
    return located


def _check(
    name: str, shape: tuple[int, ...], located: Mapping[str, _Located], folder: Path
) -> None:
    found = located.get(name)
    if found is None:
        stem = name.removesuffix("weight")
        packed = next((n for n in located if stem and n != name and n.startswith(stem)), None)
        if packed and packed != stem + "bias":
            raise UnsupportedModelOption(
                folder, f"the quantised tensor {packed}", _UNQUANTISED_HINT
            )
        raise TensorMissing(folder, name)
    entry = found.handle.get_slice(found.name)
    actual = tuple(entry.get_shape())
    if actual != shape:
        raise TensorShapeMismatch(found.path, name, shape, actual)
    if entry.get_dtype() not in _PLAIN_DTYPES:
        option = f"the type {entry.get_dtype()} of the tensor {name}"
        raise UnsupportedModelOption(found.path, option, _UNQUANTISED_HINT)


class _Reader:
    """Reads, converts and fuses tensors that are known to exist."""

    def __init__(
        self,
        config: ModelConfig,
        located: Mapping[str, _Located],
        dtype: torch.dtype,
        device: torch.device,
        kernels: KernelLibrary | None,
    ) -> None:
        self._kernels = kernels
        self._config = config
        self._located = located
        self._dtype = dtype
        self._device = device

    def decoder(self) -> DecoderWeights:
        # In memory of its own: the file will be unmapped.
        embedding = self._read("model.embed_tokens.weight").to(self._device, self._dtype, copy=True)
        is_tied = self._config.tie_word_embeddings
        head_weight = embedding if is_tied else self._converted("lm_head.weight")
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(self._layer(index) for index in range(self._config.num_layers)),
            final_norm=self._norm("model.norm.weight"),
            lm_head=Linear(head_weight, kernels=self._kernels),
            kernels=self._kernels,
        )

    def _layer(self, index: int) -> LayerWeights:
        names = layer_tensors(self._config, index)
        return LayerWeights(
            input_norm=self._norm(names.input_norm),
            qkv=self._linear(names.qkv),
            attention_out=self._linear(names.attention_out),
            mlp_norm=self._norm(names.mlp_norm),
            mlp=self._mlp(names.mlp),
            query_norm=self._head_norm(names.query_norm),
            key_norm=self._head_norm(names.key_norm),
            attention_out_norm=self._optional_norm(names.attention_out_norm),
            mlp_out_norm=self._optional_norm(names.mlp_out_norm),
        )

    def _mlp(self, names: MlpTensors | MixtureTensors) -> Mlp:
        if isinstance(names, MlpTensors):
            return self._dense(names)
        mixture = self._config.mixture
        assert mixture is not None, "layers with experts belong to models with experts"
        return MixtureMlp(
            self._linear(names.router),
            tuple(self._dense(expert) for expert in names.experts),
            mixture.num_experts_per_token,
            mixture.normalizes_weights,
        )

    def _dense(self, names: MlpTensors) -> DenseMlp:
        gate_up, down = self._linear(names.gate_up), self._linear(names.down)
        return DenseMlp(gate_up, down, self._config.activation, self._kernels)

    def _linear(self, stacked: StackedTensors) -> Linear:
        """The projections side by side."""
        names = [name for name, _ in stacked.projections]
        weights = [self._converted(f"{name}.weight") for name in names]
        biases = [self._converted(f"{name}.bias") for name in names] if stacked.has_bias else None
        return Linear.fused(weights, biases, self._kernels)

    def _norm(self, name: str) -> RmsNorm:
        if self._config.is_gemma:
            return self._norm_of(self._exact_norm_weight(name))
        return self._norm_of(self._read(name).to(self._device, self._dtype, copy=True))

    def _optional_norm(self, name: str | None) -> RmsNorm | None:
        return self._norm(name) if name else None

    def _head_norm(self, name: str | None) -> RmsNorm | None:
        """Heads are float32 whatever the model's dtype."""
        return self._norm_of(self._exact_norm_weight(name)) if name else None

    def _norm_of(self, weight: Tensor) -> RmsNorm:
        return RmsNorm(weight, self._config.rms_norm_eps, self._kernels)

    def _exact_norm_weight(self, name: str) -> Tensor:
        """In float32; Gemma's files hold the weight less one."""
        weight = self._read(name).to(self._device, torch.float32, copy=True)
        return weight.add_(1.0) if self._config.is_gemma else weight

    def _converted(self, name: str) -> Tensor:
        return self._read(name).to(self._device, self._dtype)

    def _read(self, name: str) -> Tensor:
        found = self._located[name]
        try:
            tensor: Tensor = found.handle.get_tensor(found.name)
        except (SafetensorError, OSError) as error:
            raise InvalidWeightFile(found.path, f"{name} cannot be read ({error})") from None
        return tensor
