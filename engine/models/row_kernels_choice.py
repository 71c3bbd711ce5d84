"""Which row kernels a worker computes with: as asked, else FlashInfer's where they can run.

The choice depends on what is installed, never on what fails to compile, so that equal machines
choose alike: workers that exchange KV must agree (`RowKernels.name`).
"""

from importlib.util import find_spec
from typing import Any, Literal

import torch

from engine.models.flashinfer_rows import ROW_DTYPES, FlashInferRows
from engine.models.row_kernels import RowKernels

RowKernelsName = Literal["auto", "torch", "flashinfer"]


class RowKernelsUnavailable(ValueError):
    """This machine cannot run the row kernels that were asked for."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"row kernels flashinfer cannot run here: {reason}; {remedy}")


def choose_row_kernels(
    name: RowKernelsName, dtype: torch.dtype, device: torch.device
) -> RowKernels | None:
    """The kernels; None: torch computes. Raises: RowKernelsUnavailable where asked for by name."""
    if name == "torch":
        return None
    if name == "auto":
        is_known = device.type == "cuda" and dtype in ROW_DTYPES
        if not is_known or find_spec("flashinfer") is None:
            return None
    else:
        require_row_kernels(device)
        if dtype not in ROW_DTYPES:
            raise RowKernelsUnavailable(
                f"it has none for {dtype}", "use --dtype bfloat16 or float16, or --row-kernels auto"
            )
    import flashinfer

    return FlashInferRows(flashinfer, dtype, _build_of(flashinfer))


def require_row_kernels(device: torch.device) -> None:
    """Raises: RowKernelsUnavailable where they are asked for by name and cannot run."""
    if device.type != "cuda":
        raise RowKernelsUnavailable("it needs a CUDA device", "choose --row-kernels auto")
    if find_spec("flashinfer") is None:
        raise RowKernelsUnavailable(
            "the package is not installed",
            "install tandemserve[cuda], or choose --row-kernels torch on every worker",
        )


# FlashInfer has no types.
def _build_of(package: Any) -> str:
    """Later versions take CuTe's kernels for norms where nvidia-cutlass-dsl is installed."""
    return "" if getattr(package.norm, "_USE_CUDA_NORM", True) else "cute"
