"""The engine to be measured: a model of random weights made on the device, and one KV pool."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from benchmarks.decode_step import BLOCK_SIZE, SHAPES
from engine.attention.backend import AttentionBackend
from engine.attention.choice import (
    AttentionName,
    AttentionShape,
    PrefixSharing,
    choose_attention,
)
from engine.cuda_capture import CudaCapture
from engine.kv_pool import KvLayout, KvPool
from engine.linear import Linear
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner
from engine.models.captured_layers import Capture
from engine.models.decoder import Decoder
from engine.models.row_kernels_choice import RowKernelsName, choose_row_kernels
from engine.models.with_row_kernels import with_row_kernels
from engine.native.choice import choose_kernels
from engine.random_weights_testing import make_random_decoder
from engine.testing import family_config

MODEL_SHAPES: dict[str, dict[str, Any]] = {
    **{
        name: {**sizes, "head_dim": 64, "tie_word_embeddings": True}
        for name, sizes in SHAPES.items()
    },
    # Llama 3.1 8B's.
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
MAX_CONTEXT = 20_480
# Left free beside the KV pool, for passes and graphs.
_MARGIN_BYTES = 6 << 30
_POOL_SHARE = 0.9
_CPU_POOL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured, and on what."""

    shape: str = "8b"
    device: str = "cuda"
    attention: AttentionName = "auto"
    # Small shapes and few repeats: a look at whether the program runs.
    is_quick: bool = False
    # A table of prompt and answer lengths, for the cluster; "" for fixed ones.
    lengths: str = ""

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.shape == "2m" else torch.bfloat16

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def config_of(shape: str) -> ModelConfig:
    """A decoder of Llama's family with these sizes."""
    sizes = MODEL_SHAPES[shape]
    return family_config("llama", **sizes, max_position_embeddings=MAX_CONTEXT)


class EngineSetup:
    """Model, pool and attention, each made when it is first needed and then kept."""

    def __init__(self, options: Options, capture: Capture | None = None) -> None:
        """`capture` records layers; without it, on a GPU, CUDA graphs do."""
        self.options = options
        self._capture = capture

    @cached_property
    def model(self) -> Decoder:
        """Its layers are ordered kernel by kernel, with a worker's own row kernels."""
        return self._with_row_kernels("auto")

    @cached_property
    def _torch_rows(self) -> Decoder:
        options = self.options
        kernels = None if options.is_cuda or options.attention == "torch" else choose_kernels()
        device = torch.device(options.device)
        return make_random_decoder(config_of(options.shape), options.dtype, device, kernels=kernels)

    @property
    def has_row_kernels(self) -> bool:
        """Whether a worker has others than torch's here."""
        return self.model.weights.row_kernels is not None

    def _with_row_kernels(self, name: RowKernelsName) -> Decoder:
        """Over the same matrices."""
        model = self._torch_rows
        rows = choose_row_kernels(name, model.dtype, model.device)
        if rows is None:
            return model
        return Decoder(model.config, with_row_kernels(model.config, model.weights, rows))

    @cached_property
    def layout(self) -> KvLayout:
        config = self.model.config
        heads = (config.num_kv_heads, config.head_dim)
        return KvLayout(config.num_layers, *heads, BLOCK_SIZE, self.options.dtype_name)

    @cached_property
    def pool(self) -> KvPool:
        """Most of what the device has left; all of it is cleared memory."""
        num_bytes = _CPU_POOL_BYTES
        if self.options.is_cuda:
            # What measuring the device took.
            torch.cuda.empty_cache()
            free_bytes, _ = torch.cuda.mem_get_info()
            num_bytes = min(int(free_bytes * _POOL_SHARE), free_bytes - _MARGIN_BYTES)
        return KvPool(self.layout, max(1, num_bytes // self.layout.block_bytes), self.model.device)

    @cached_property
    def attention(self) -> AttentionBackend:
        return self.attention_with("auto")

    def attention_with(self, sharing: PrefixSharing) -> AttentionBackend:
        """A new one. Raises: AttentionUnavailable."""
        config = self.model.config
        shape = AttentionShape(
            self.layout,
            config.num_heads,
            config.layer_attention,
            self.model.device,
            self.model.dtype,
        )
        return choose_attention(shape, self.options.attention, sharing)

    def runner(self, max_num_seqs: int, model: Decoder | None = None) -> ModelRunner:
        """An empty one over the pool."""
        return ModelRunner(model or self.model, self.pool, max_num_seqs, self.attention)

    def captured_model(self, max_rows: int, row_kernels: RowKernelsName = "auto") -> Decoder | None:
        """Over the same weights, with its layers recorded; None where nothing records."""
        capture = self._capture
        if capture is None and self.options.is_cuda:
            capture = CudaCapture(self.model.device)
        if capture is None:
            return None
        weights = self._with_row_kernels(row_kernels).weights
        model = Decoder(self.model.config, weights)
        model.capture(max_rows, capture)
        return model

    def layer_weight_bytes(self) -> int:
        return _bytes(self.model.weights.layer_linears, self.model.dtype)

    def weight_bytes(self) -> int:
        """What a step reads: every matrix but the embedding, of which it takes a few rows."""
        return self.layer_weight_bytes() + _bytes([self.model.weights.lm_head], self.model.dtype)

    def clock(self) -> float:
        """Seconds, when all that was ordered has been computed."""
        if self.options.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def facts(self) -> dict[str, Any]:
        """What the figures of a part rest on."""
        return {
            "shape": self.options.shape,
            "dtype": self.options.dtype_name,
            "attention": self.attention.arithmetic,
            "arithmetic": self.model.arithmetic,
            "weight_bytes": self.weight_bytes(),
            "kv_bytes_per_token": self.layout.block_bytes // BLOCK_SIZE,
            "pool_tokens": self.pool.num_blocks * BLOCK_SIZE,
        }


def _bytes(linears: Iterable[Linear], dtype: torch.dtype) -> int:
    return sum(one.num_inputs * one.num_outputs * dtype.itemsize for one in linears)
