"""A model of random weights that is drawn where it will be used: no folder, no second copy."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.model_config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.tensor_layout import expected_shapes
from engine.native.library import KernelLibrary
from engine.tensor_parallel import RankExchange, config_of_rank, share_of
from engine.weights import read_decoder_weights

# As safetensors spells them.
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def spread(name: str, noise: Tensor, config: ModelConfig) -> Tensor:
    """Normal noise as a tensor of that name: greedy output wanders instead of repeating a token."""
    if name.endswith("norm.weight"):
        # Gemma adds one more: what its layers give is otherwise small beside the embedding.
        return 1.0 + 0.1 * noise
    if name.endswith(".bias"):
        return 0.5 * noise
    if name.startswith(("model.embed_tokens", "lm_head")):
        return noise * (0.1 if config.is_gemma else 1.0)
    # Strong enough that the output depends on the context, not on the last token alone.
    scale: float = 2.0 / noise.shape[1] ** 0.5
    return noise * scale


class RandomTensors:
    """A `TensorSource` of a whole model; a tensor is drawn, on the device, when it is asked for.

    The same seed, name, dtype and kind of device give the same tensor, whatever was drawn before.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        self._config, self._dtype, self._device, self._seed = config, dtype, device, seed
        self._shapes = expected_shapes(config)

    def keys(self) -> Iterable[str]:
        return self._shapes.keys()

    def get_tensor(self, name: str) -> Tensor:
        generator = torch.Generator(self._device)
        generator.manual_seed(zlib.crc32(name.encode(), self._seed))
        noise = torch.randn(
            self._shapes[name], generator=generator, dtype=self._dtype, device=self._device
        )
        return spread(name, noise, self._config)

    def get_slice(self, name: str) -> "_Rows":
        """See `TensorSource.get_slice`."""
        return _Rows(self, name, self._shapes[name], _NAMES[self._dtype])


@dataclass(frozen=True, slots=True)
class _Rows:
    source: RandomTensors
    name: str
    shape: tuple[int, ...]
    dtype: str

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, places: slice | tuple[slice, slice]) -> Tensor:
        return self.source.get_tensor(self.name)[places]


def make_random_decoder(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    *,
    kernels: KernelLibrary | None = None,
    exchange: RankExchange | None = None,
) -> Decoder:
    """The model that `load_model` would make of a folder with these tensors."""
    sources = {Path("random") / "weights": RandomTensors(config, dtype, device, seed)}
    weights = read_decoder_weights(config, sources, dtype, device, kernels, exchange)
    return Decoder(config_of_rank(config, share_of(exchange)), weights)
