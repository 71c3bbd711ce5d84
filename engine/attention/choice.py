"""Which attention backend a worker uses: as asked, else the fastest one its machine can run.

The choice depends on what is installed, never on what happens to fail, so that equal machines
choose alike: workers that exchange KV must agree (`AttentionBackend.arithmetic`).
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.flashinfer import FlashInferAttention, InstalledKernels
from engine.attention.native import NativeAttention, fits
from engine.attention.split_kv import SplitKvAttention
from engine.kv_pool import KvLayout
from engine.model_config import LayerAttention
from engine.native.library import find_compiler, load_kernels

AttentionName = Literal["auto", "torch", "native", "flashinfer"]


class AttentionUnavailable(ValueError):
    """This machine cannot run the attention backend that was asked for."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"attention {name} cannot run here: {reason}; {remedy}")
        self.name = name


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a backend is built for."""

    layout: KvLayout
    num_heads: int
    layers: tuple[LayerAttention, ...]
    device: torch.device


def choose_attention(shape: AttentionShape, name: AttentionName = "auto") -> AttentionBackend:
    """The backend; compiling the native one takes about two seconds, once per machine.

    Raises: AttentionUnavailable, KernelsNotBuilt, NoCommonRowCount.
    """
    if name == "auto":
        name = _best(shape)
    layout, num_heads, layers, device = shape.layout, shape.num_heads, shape.layers, shape.device
    if name == "torch":
        return SplitKvAttention(layout, num_heads, layers, device)
    if name == "flashinfer":
        _require_flashinfer(device)
        if layout.torch_dtype != torch.bfloat16:
            raise AttentionUnavailable(
                "flashinfer",
                "it has no float32 kernels",
                "start every worker with --dtype bfloat16",
            )
        return FlashInferAttention(layout, num_heads, layers, InstalledKernels(device))
    compiler = find_compiler()
    if device.type != "cpu" or compiler is None or not fits(layout, num_heads):
        raise AttentionUnavailable(
            "native",
            "it needs the CPU, a C compiler, head_dim up to 256 and up to 32 heads per KV head",
            "install gcc, or choose --attention torch on every worker",
        )
    return NativeAttention(layout, num_heads, layers, load_kernels(compiler))


def _best(shape: AttentionShape) -> Literal["torch", "native", "flashinfer"]:
    if shape.device.type == "cuda":
        is_installed = find_spec("flashinfer") is not None
        is_bfloat16 = shape.layout.torch_dtype == torch.bfloat16
        return "flashinfer" if is_installed and is_bfloat16 else "torch"
    can_compile = find_compiler() is not None and fits(shape.layout, shape.num_heads)
    return "native" if can_compile else "torch"


def _require_flashinfer(device: torch.device) -> None:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise AttentionUnavailable(
            "flashinfer", "it needs a CUDA device", "choose --attention auto"
        )
    if find_spec("flashinfer") is None:
        raise AttentionUnavailable(
            "flashinfer",
            "the package is not installed",
            "install tandemserve[cuda], or choose --attention torch on every worker",
        )
