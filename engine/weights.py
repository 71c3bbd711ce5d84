"""Reads the tensors of a checked model folder into the form the forward pass wants.

Files are mapped, so only one fused matrix at a time is in memory twice. Every expected tensor is
looked up by name and shape before any is copied: a wrong folder fails in milliseconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.linear import Linear, side_by_side
from engine.loading_progress import UNWATCHED, LoadingProgress
from engine.model_config import ModelConfig
from engine.model_folder_errors import InvalidWeightFile
from engine.models.decoder_weights import DecoderWeights, LayerWeights
from engine.models.mlp import DenseMlp, MixtureMlp, Mlp
from engine.models.norm import RmsNorm
from engine.models.tensor_layout import (
    MixtureTensors,
    MlpTensors,
    StackedTensors,
    expected_shapes,
    layer_tensors,
)
from engine.native.library import KernelLibrary
from engine.outside_exchange import OutsideExchange
from engine.tensor_parallel import (
    GatheringLinear,
    HeadLinear,
    RankExchange,
    SummingLinear,
    share_of,
)
from engine.weight_check import Located, located_tensors


class TensorSource(Protocol):
    """Tensors by name; an open safetensors file is one."""

    def keys(self) -> Iterable[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> Any:
        """What tells `get_shape()` and `get_dtype()`, and gives rows by `[start:end]`, columns by
        `[:, start:end]`."""
        ...


def load_decoder_weights(
    config: ModelConfig,
    weight_files: Sequence[Path],
    dtype: torch.dtype,
    device: torch.device,
    kernels: KernelLibrary | None = None,
    exchange: RankExchange | None = None,
    progress: LoadingProgress = UNWATCHED,
) -> DecoderWeights:
    """Load and fuse all weights. Tensors that the model does not use are ignored.

    The parts will compute with `kernels`, which are for the CPU, or without them with torch. With
    an `exchange`, only this rank's share of every matrix is read, and all of the embedding.

    Raises: TensorMissing, TensorShapeMismatch, InvalidWeightFile, UnsupportedModelOption.
    """
    with ExitStack() as stack:
        sources = {path: _open(stack, path) for path in weight_files}
        return read_decoder_weights(config, sources, dtype, device, kernels, exchange, progress)


def read_decoder_weights(
    config: ModelConfig,
    sources: Mapping[Path, TensorSource],
    dtype: torch.dtype,
    device: torch.device,
    kernels: KernelLibrary | None = None,
    exchange: RankExchange | None = None,
    progress: LoadingProgress = UNWATCHED,
) -> DecoderWeights:
    """As `load_decoder_weights`, from sources by the path that errors name."""
    located = located_tensors(config, sources)
    counted = _Counted(config, progress)
    return _Reader(config, located, dtype, device, kernels, exchange, counted).decoder()


def _open(stack: ExitStack, path: Path) -> TensorSource:
    try:
        # safetensors ships no types for the object that safe_open returns.
        source: TensorSource = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise InvalidWeightFile(path, f"cannot be opened ({error})") from None
    return source


class _Counted:
    """Tells how much of the model has been read."""

    def __init__(self, config: ModelConfig, progress: LoadingProgress) -> None:
        self._progress = progress
        self._size_by_name = {name: prod(shape) for name, shape in expected_shapes(config).items()}
        self._num_total = sum(self._size_by_name.values())
        self._num_read = 0

    def was_read(self, name: str) -> None:
        """A whole tensor, or all that a rank needs of it."""
        self._num_read += self._size_by_name[name]
        self._progress.advanced(self._num_read, self._num_total)


class _Reader:
    """Reads, converts and fuses tensors that are known to exist."""

    def __init__(
        self,
        config: ModelConfig,
        located: Mapping[str, Located[TensorSource]],
        dtype: torch.dtype,
        device: torch.device,
        kernels: KernelLibrary | None,
        exchange: RankExchange | None,
        counted: _Counted,
    ) -> None:
        self._counted = counted
        self._kernels = kernels
        self._exchange = None if exchange is None else OutsideExchange(exchange)
        self._share = share_of(exchange)
        self._config = config
        self._located = located
        self._dtype = dtype
        self._device = device

    def decoder(self) -> DecoderWeights:
        # In memory of its own: the file will be unmapped.
        embedding = self._read("model.embed_tokens.weight").to(self._device, self._dtype, copy=True)
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(self._layer(index) for index in range(self._config.num_layers)),
            final_norm=self._norm("model.norm.weight"),
            lm_head=self._head(embedding),
            kernels=self._kernels,
            exchange=self._exchange,
        )

    def _head(self, embedding: Tensor) -> Linear:
        vocab_size = self._config.vocab_size
        if self._config.tie_word_embeddings:
            start, end = self._share.range_of(vocab_size)
            weight = embedding[start:end]
        else:
            weight = self._cut("lm_head.weight", (vocab_size,))
        if self._exchange is None:
            return Linear(weight, kernels=self._kernels)
        missing = self._share.width_of(vocab_size) - weight.shape[0]
        padded = torch.nn.functional.pad(weight, (0, 0, 0, missing))
        return HeadLinear(padded, self._kernels, self._exchange, vocab_size)

    def _layer(self, index: int) -> LayerWeights:
        names = layer_tensors(self._config, index)
        return LayerWeights(
            input_norm=self._norm(names.input_norm),
            qkv=self._linear(names.qkv),
            attention_out=self._closing(names.attention_out),
            mlp_norm=self._norm(names.mlp_norm),
            mlp=self._mlp(names.mlp),
            query_norm=self._head_norm(names.query_norm),
            key_norm=self._head_norm(names.key_norm),
            attention_out_norm=self._optional_norm(names.attention_out_norm),
            mlp_out_norm=self._optional_norm(names.mlp_out_norm),
        )

    def _mlp(self, names: MlpTensors | MixtureTensors) -> Mlp:
        if isinstance(names, MlpTensors):
            gate_up, down = self._linear(names.gate_up), self._closing(names.down)
            return DenseMlp(gate_up, down, self._config.activation, self._kernels)
        mixture = self._config.mixture
        assert mixture is not None, "layers with experts belong to models with experts"
        return MixtureMlp(
            self._router(names.router),
            tuple(self._expert(expert) for expert in names.experts),
            mixture.num_experts_per_token,
            mixture.normalizes_weights,
            self._exchange,
        )

    def _router(self, stacked: StackedTensors) -> Linear:
        """Whole at every rank: all must send a token to the same experts."""
        ((name, _),) = stacked.projections
        return Linear(self._converted(f"{name}.weight"), kernels=self._kernels)

    def _expert(self, names: MlpTensors) -> DenseMlp:
        """The mixture exchanges, once for all experts."""
        gate_up = self._linear(names.gate_up)
        if self._is_summing:
            weight, bias = self._part(names.down)
            # Of all the parts that are added up, one has the bias.
            down = Linear(weight, bias if self._share.rank == 0 else None, self._kernels)
        else:
            down = self._linear(names.down)
        return DenseMlp(gate_up, down, self._config.activation, self._kernels)

    def _linear(self, stacked: StackedTensors) -> Linear:
        """This rank's outputs of the projections side by side."""
        weights, biases = self._cut_all(stacked)
        return Linear.fused(weights, biases, self._kernels, stacked.num_outputs)

    def _closing(self, stacked: StackedTensors) -> Linear:
        """A matrix that takes what the ranks made each, and gives all of them whole rows."""
        if self._exchange is None:
            return self._linear(stacked)
        if self._is_summing:
            return SummingLinear(*self._part(stacked), self._kernels, self._exchange)
        weights, biases = self._cut_all(stacked)
        bias = None if biases is None else torch.cat(biases)
        return GatheringLinear(side_by_side(weights), bias, self._kernels, self._exchange)

    @property
    def _is_summing(self) -> bool:
        return self._exchange is not None and self._exchange.reduce == "sum"

    def _part(self, stacked: StackedTensors) -> tuple[Tensor, Tensor | None]:
        """All outputs of this rank's inputs, and the bias of all outputs where there is one."""
        ((name, _),) = stacked.projections
        found = self._located[f"{name}.weight"]
        first, end = self._share.range_of(stacked.num_inputs)
        try:
            columns = found.handle.get_slice(found.name)[:, first:end]
        except (SafetensorError, OSError) as error:
            raise InvalidWeightFile(found.path, f"{name} cannot be read ({error})") from None
        self._counted.was_read(f"{name}.weight")
        bias = self._converted(f"{name}.bias") if stacked.has_bias else None
        return columns.to(self._device, self._dtype).contiguous(), bias

    def _cut_all(self, stacked: StackedTensors) -> tuple[list[Tensor], list[Tensor] | None]:
        """Weights and, where there are any, biases of this rank."""
        weights = [self._cut(f"{name}.weight", parts) for name, parts in stacked.projections]
        if not stacked.has_bias:
            return weights, None
        return weights, [self._cut(f"{name}.bias", parts) for name, parts in stacked.projections]

    def _cut(self, name: str, parts: tuple[int, ...]) -> Tensor:
        """This rank's range of each of the parts, which lie one below the other."""
        if self._exchange is None:
            return self._converted(name)
        found, starts = self._located[name], accumulate(parts, initial=0)
        pieces = []
        try:
            rows = found.handle.get_slice(found.name)
            for start, size in zip(starts, parts, strict=False):
                first, end = self._share.range_of(size)
                pieces.append(rows[start + first : start + end].to(self._device, self._dtype))
        except (SafetensorError, OSError) as error:
            raise InvalidWeightFile(found.path, f"{name} cannot be read ({error})") from None
        self._counted.was_read(name)
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

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
        self._counted.was_read(name)
        return tensor
