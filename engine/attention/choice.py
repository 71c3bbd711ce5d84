"""Which attention backend a worker uses: as asked, else the fastest one its machine can run.

The choice depends on what is installed, never on what fails to compile, so that equal machines
choose alike: workers that exchange KV must agree (`AttentionBackend.arithmetic`).
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.flashinfer import FlashInferAttention, InstalledKernels, has_kernels
from engine.attention.flashinfer_shared import MIN_SAVED_BYTES
from engine.attention.native import NativeAttention, fits
from engine.attention.split_kv import SplitKvAttention
from engine.kv_pool import KvLayout
from engine.model_config import LayerAttention
from engine.native.choice import choose_kernels

AttentionName = Literal["auto", "torch", "native", "flashinfer"]
# Whether KV that several sequences begin with is read once. auto: where it changes no bit.
PrefixSharing = Literal["auto", "yes", "no"]


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
    # Of the model, and so of what attention may round queries to; None: that of the KV.
    dtype: torch.dtype | None = None

    @property
    def query_dtype(self) -> torch.dtype:
        return self.dtype or self.layout.torch_dtype


def choose_attention(
    shape: AttentionShape, name: AttentionName = "auto", sharing: PrefixSharing = "auto"
) -> AttentionBackend:
    """The backend; compiling the native one takes a few seconds, once per machine.

    Raises: AttentionUnavailable, KernelsNotBuilt, NoCommonRowCount; KernelsNotLoaded where the
        native one is asked for by name.
    """
    kernels = None
    if name == "auto":
        kernels = choose_kernels() if _may_be_native(shape) else None
        name = "native" if kernels else _best_without_kernels(shape)
    layout, num_heads, layers, device = shape.layout, shape.num_heads, shape.layers, shape.device
    if name == "torch":
        _require_no_sharing(sharing)
        return SplitKvAttention(layout, num_heads, layers, device)
    if name == "flashinfer":
        require_flashinfer(device)
        if not has_kernels(shape.query_dtype, layout.torch_dtype):
            raise AttentionUnavailable(
                "flashinfer",
                f"it has no kernels for a model in {shape.query_dtype} over {layout.dtype} KV",
                "start every worker with --dtype bfloat16 or float16, and --kv-dtype auto or "
                "fp8_e4m3",
            )
        return FlashInferAttention(
            layout,
            num_heads,
            layers,
            InstalledKernels(device),
            shape.query_dtype,
            MIN_SAVED_BYTES if sharing == "yes" else None,
        )
    if kernels is None and _may_be_native(shape):
        kernels = choose_kernels("native")
    if kernels is None:
        raise AttentionUnavailable(
            "native",
            "it needs the CPU, a C compiler, head_dim up to 256, up to 32 heads per KV head and "
            "float32 or bfloat16 KV",
            "install gcc, or choose --attention torch on every worker",
        )
    return NativeAttention(layout, num_heads, layers, kernels, is_sharing=sharing != "no")


def _may_be_native(shape: AttentionShape) -> bool:
    return shape.device.type == "cpu" and fits(shape.layout, shape.num_heads)


def _best_without_kernels(shape: AttentionShape) -> Literal["torch", "flashinfer"]:
    is_installed = shape.device.type == "cuda" and find_spec("flashinfer") is not None
    is_known = has_kernels(shape.query_dtype, shape.layout.torch_dtype)
    return "flashinfer" if is_installed and is_known else "torch"


def _require_no_sharing(sharing: PrefixSharing) -> None:
    if sharing == "yes":
        raise AttentionUnavailable(
            "torch",
            "it cannot read KV that several sequences begin with once for all",
            "choose --shared-prefix-attention auto, or --attention native or flashinfer",
        )


def require_flashinfer(device: torch.device) -> None:
    """Raises: AttentionUnavailable where it is asked for and cannot run."""
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
