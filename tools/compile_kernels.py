"""Compiles FlashInfer's kernels that the engine uses, for a GPU that this machine lacks.

Run by tools/gpu_bundle.py in an environment that has flashinfer, torch and ninja, with nvcc on the
PATH. The result is loaded from the folder `data/aot` of the package, so that no minute of a GPU
goes into compiling. The engine's wrappers are all of one kind of module: see
engine/attention/flashinfer.py.
"""

import argparse
import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_KV_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8": torch.float8_e4m3fn}
_TORCH_NAMES = ("bfloat16", "float16")
_KINDS = ("full", "window", "softcap")


@dataclass(frozen=True, slots=True)
class Kernel:
    """Queries of one dtype over KV of one, and what the layer does beside."""

    query_dtype: str
    kv_dtype: str
    head_dim: int
    kind: str

    @classmethod
    def parse(cls, text: str) -> "Kernel":
        """QUERIES/KV/HEAD_DIM/KIND, as in bfloat16/fp8/128/full. Raises: ValueError."""
        parts = text.split("/")
        if len(parts) != 4 or not parts[2].isdecimal():
            raise ValueError(f"{text!r} is not QUERIES/KV/HEAD_DIM/KIND")
        query, kv, head_dim, kind = parts
        if query not in _TORCH_NAMES or kv not in _KV_DTYPES or kind not in _KINDS:
            raise ValueError(
                f"{text!r}: queries are {', '.join(_TORCH_NAMES)}; KV is {', '.join(_KV_DTYPES)}; "
                f"the kind {', '.join(_KINDS)}"
            )
        return cls(query, kv, int(head_dim), kind)


def compile_kernels(kernels: list[Kernel], out: Path) -> None:
    """Write `out`/NAME/NAME.so of each; about a minute each.

    And of what joins two parts, and of what engine/models/flashinfer_rows.py calls.
    """
    modules = importlib.import_module("flashinfer.jit.attention.modules")
    specs = [_spec_of(modules, kernel) for kernel in kernels]
    specs.append(importlib.import_module("flashinfer.jit.cascade").gen_cascade_module())
    specs.extend(_row_specs())
    for spec in specs:
        spec.build(verbose=False)
        target = out / spec.name / f"{spec.name}.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(spec.jit_library_path, target)
        print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB", flush=True)


def _row_specs() -> list[Any]:
    """Norms, rotation and gates; each is for all sizes, and for both dtypes."""
    norm, rope, activation = (
        importlib.import_module(f"flashinfer.jit.{part}") for part in ("norm", "rope", "activation")
    )
    gates = [activation.gen_act_and_mul_module(name) for name in ("silu", "gelu_tanh")]
    return [norm.gen_norm_module(), rope.gen_rope_module(), *gates]


# FlashInfer has no types.
def _spec_of(modules: Any, kernel: Kernel) -> Any:
    query = _KV_DTYPES[kernel.query_dtype]
    kv = _KV_DTYPES[kernel.kv_dtype]
    head_dim = kernel.head_dim
    # FA2; positions are rotated by the engine; sums of bfloat16 products are float32.
    return modules.gen_batch_prefill_module(
        "fa2",
        query,
        kv,
        query,
        torch.int32,
        head_dim,
        head_dim,
        0,
        kernel.kind == "window",
        kernel.kind == "softcap",
        False,
    )


def main() -> int:
    """Compile what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="+", type=Kernel.parse)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    compile_kernels(args.kernels, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
