"""The calls of flashinfer_row_calls.py are those that FlashInfer takes.

They are compared with the signatures of 0.6.6, noted below, and with the sources of the package
where it is installed, which are read and not imported.
"""

import ast
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.models.flashinfer_row_calls import (
    ApplyGate,
    Normalise,
    NormaliseSum,
    RotateInPlace,
)

# Of 0.6.6: the parameters of each, in order, of which those with a default need not be given.
NOTED = """
def rmsnorm(input: torch.Tensor, weight: torch.Tensor, eps: float = ...,
    out: Optional[torch.Tensor] = ..., enable_pdl: Optional[bool] = ...) -> torch.Tensor: ...
def gemma_rmsnorm(input: torch.Tensor, weight: torch.Tensor, eps: float = ...,
    out: Optional[torch.Tensor] = ..., enable_pdl: Optional[bool] = ...) -> torch.Tensor: ...
def fused_add_rmsnorm(input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
    eps: float = ..., enable_pdl: Optional[bool] = ...) -> None: ...
def gemma_fused_add_rmsnorm(input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
    eps: float = ..., enable_pdl: Optional[bool] = ...) -> None: ...
def silu_and_mul(input: torch.Tensor, out: torch.Tensor = ..., enable_pdl: Optional[bool] = ...
    ) -> torch.Tensor: ...
def gelu_tanh_and_mul(input: torch.Tensor, out: torch.Tensor = ...,
    enable_pdl: Optional[bool] = ...) -> torch.Tensor: ...
def apply_rope_with_cos_sin_cache_inplace(positions: torch.Tensor, query: torch.Tensor,
    key: torch.Tensor, head_size: int, cos_sin_cache: torch.Tensor, is_neox: bool = ...
    ) -> None: ...
"""
CALLS = {
    "rmsnorm": (Normalise, ["input", "weight", "eps"]),
    "gemma_rmsnorm": (Normalise, ["input", "weight", "eps"]),
    "fused_add_rmsnorm": (NormaliseSum, ["input", "residual", "weight", "eps"]),
    "gemma_fused_add_rmsnorm": (NormaliseSum, ["input", "residual", "weight", "eps"]),
    "silu_and_mul": (ApplyGate, ["input"]),
    "gelu_tanh_and_mul": (ApplyGate, ["input"]),
    "apply_rope_with_cos_sin_cache_inplace": (
        RotateInPlace,
        ["positions", "query", "key", "head_size", "cos_sin_cache", "is_neox"],
    ),
}


def sources() -> Iterator[tuple[str, str]]:
    """What is compared with."""
    yield "0.6.6, as noted", NOTED
    spec = find_spec("flashinfer")
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        # norm is a package in later versions.
        files = [root / "norm.py", root / "norm/__init__.py", root / "rope.py"]
        found = [path for path in (*files, root / "activation.py") if path.exists()]
        yield "installed", "\n".join(path.read_text() for path in found)


def functions(source: str) -> dict[str, ast.FunctionDef]:
    """By name; futures of a file may stand behind another file's code."""
    lines = (line for line in source.splitlines() if not line.startswith("from __future__"))
    nodes = ast.parse("\n".join(lines)).body
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


SOURCES = list(sources())


@pytest.mark.parametrize("source", [text for _, text in SOURCES], ids=[name for name, _ in SOURCES])
@pytest.mark.parametrize("name", CALLS)
def test_our_calls_are_those_that_the_package_takes(name: str, source: str) -> None:
    ours, expected = CALLS[name]
    theirs = functions(source)[name]
    given = [each.arg for each in theirs.args.args][: len(expected)]
    assert given == expected
    # What is not given has a default.
    assert len(theirs.args.args) - len(theirs.args.defaults) <= len(expected)
    parameters = list(inspect.signature(ours.__call__).parameters.values())[1:]
    assert len(parameters) == len(expected)
    types = [ast.unparse(each.annotation) for each in theirs.args.args if each.annotation]
    mine = ["torch.Tensor" if p.annotation.__name__ == "Tensor" else p.annotation.__name__
            for p in parameters]  # fmt: skip
    assert types[: len(mine)] == mine
    assert theirs.returns is not None
    is_in_place = inspect.signature(ours.__call__).return_annotation is None
    assert (ast.unparse(theirs.returns) == "None") == is_in_place
