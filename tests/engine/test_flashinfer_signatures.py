"""The calls of flashinfer_calls.py are those that FlashInfer takes.

They are compared with the signatures of 0.6.6, noted below, and with the sources of the package
where it is installed; these are read, not imported, so one wheel is enough:
pip install --no-deps flashinfer-python==0.6.6
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from engine.attention.flashinfer_calls import (
    DecodePlan,
    DecodeWrapper,
    MakeDecodeWrapper,
    MakePrefillWrapper,
    MergeState,
    PrefillPlan,
    PrefillWrapper,
)

DECODE, PREFILL = "BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"
# Of 0.6.6: what must be given, and those of the others that are given.
NOTED = f"""
class {DECODE}:
    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = ...,
        use_tensor_cores: bool = ..., backend: str = ...) -> None: ...
    def plan(self, indptr: torch.Tensor, indices: torch.Tensor, last_page_len: torch.Tensor,
        num_qo_heads: int, num_kv_heads: int, head_dim: int, page_size: int, window_left: int = ...,
        logits_soft_cap: Optional[float] = ..., sm_scale: Optional[float] = ...,
        q_data_type: Optional[Union[str, torch.dtype]] = ...,
        kv_data_type: Optional[Union[str, torch.dtype]] = ...,
        fixed_split_size: Optional[int] = ...) -> None: ...
    def run(self, q: torch.Tensor,
        paged_kv_cache: Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]],
        *args, return_lse: bool = ...
    ) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]: ...
    run_return_lse = functools.partialmethod(run, return_lse=True)
class {PREFILL}:
    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = ...,
        backend: str = ...) -> None: ...
    def plan(self, qo_indptr: torch.Tensor, paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor, paged_kv_last_page_len: torch.Tensor, num_qo_heads: int,
        num_kv_heads: int, head_dim_qk: int, page_size: int, causal: bool = ...,
        sm_scale: Optional[float] = ..., window_left: int = ...,
        logits_soft_cap: Optional[float] = ..., q_data_type: Union[str, torch.dtype] = ...,
        kv_data_type: Optional[Union[str, torch.dtype]] = ...,
        fixed_split_size: Optional[int] = ...) -> None: ...
    def run(self, q: torch.Tensor,
        paged_kv_cache: Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]],
        *args, return_lse: bool = ...
    ) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]: ...
    run_return_lse = functools.partialmethod(run, return_lse=True)
def merge_state(v_a: torch.Tensor, s_a: torch.Tensor, v_b: torch.Tensor, s_b: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]: ...
"""
NAMES: dict[str, Any] = {
    "torch": torch, "Optional": Optional, "Union": Union, "Tuple": tuple, "List": list,
    "Dict": dict, "Any": Any, "Literal": Literal,
}  # fmt: skip


@dataclass
class Signature:
    """Of one method: the type of each parameter, those that must be given, what it returns."""

    types: dict[str, Any]
    required: set[str]
    returned: Any

    @classmethod
    def of(cls, function: ast.FunctionDef, *, is_method: bool = True) -> "Signature":
        arguments = function.args
        by_position = [*arguments.posonlyargs, *arguments.args][is_method:]
        required = by_position[: len(by_position) - len(arguments.defaults)]
        types = {a.arg: meaning(a.annotation) for a in [*by_position, *arguments.kwonlyargs]}
        return cls(types, {argument.arg for argument in required}, meaning(function.returns))


def meaning(annotation: ast.expr | None) -> Any:
    # Names and subscripts of NAMES only; anything else raises.
    return Any if annotation is None else eval(ast.unparse(annotation), dict(NAMES))


def signatures(source: str, name: str) -> Mapping[str, Signature]:
    """By method; of those that are overloaded, the last, which takes all of it."""
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (found,) = [node for node in classes if node.name == name]
    methods = {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}
    known = {name: Signature.of(methods[name]) for name in ("__init__", "plan", "run")}
    others = {
        target.id: ast.unparse(node.value)
        for node in found.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if others.get("run_return_lse") == "functools.partialmethod(run, return_lse=True)":
        known["run_return_lse"] = known["run"]
    if methods["plan"].args.kwarg is not None:
        # From 0.6.18 on what is given by keyword goes on to another method.
        known["plan"].types |= Signature.of(methods["_plan_impl"]).types
    return known


def sources() -> Iterator[tuple[str, str, str, str]]:
    """What is compared with, and the sources of both wrappers and of what joins their results."""
    yield "0.6.6, as noted", NOTED, NOTED, NOTED
    spec = find_spec("flashinfer")
    if spec is not None and spec.origin is not None:
        decode, prefill, cascade = (
            (Path(spec.origin).parent / f"{part}.py").read_text()
            for part in ("decode", "prefill", "cascade")
        )
        yield "installed", decode, prefill, cascade


def takes(theirs: Any, ours: Any) -> bool:
    """Whether every value of our type is one of theirs."""
    if get_origin(ours) in (Union, UnionType):
        return all(takes(theirs, part) for part in get_args(ours))
    if get_origin(theirs) in (Union, UnionType):
        return any(takes(part, ours) for part in get_args(theirs))
    return theirs is Any or theirs == ours or (theirs, ours) in ((float, int), (NoneType, None))


SOURCES = list(sources())


@pytest.mark.parametrize("source", SOURCES, ids=[name for name, *_ in SOURCES])
@pytest.mark.parametrize(
    ("name", "plan", "wrapper", "make"),
    [
        (DECODE, DecodePlan, DecodeWrapper, MakeDecodeWrapper),
        (PREFILL, PrefillPlan, PrefillWrapper, MakePrefillWrapper),
    ],
)
def test_our_calls_are_those_that_the_package_takes(
    source: tuple[str, str, str, str], name: str, plan: type, wrapper: type, make: type
) -> None:
    _, decode, prefill, _ = source
    theirs = signatures(decode if name == DECODE else prefill, name)
    ours = {
        "plan": get_type_hints(plan),
        "run": get_type_hints(wrapper.run),  # type: ignore[attr-defined]
        "run_return_lse": get_type_hints(wrapper.run_return_lse),  # type: ignore[attr-defined]
        "__init__": get_type_hints(make.__call__),
    }
    for method, given in ours.items():
        returned = given.pop("return", NoneType)
        assert theirs[method].required <= set(given), method
        for argument, kind in given.items():
            assert argument in theirs[method].types, f"{method} takes no {argument}"
            assert takes(theirs[method].types[argument], kind), f"{method}: type of {argument}"
        if method in ("run", "run_return_lse"):
            assert takes(theirs[method].returned, returned)


@pytest.mark.parametrize("source", SOURCES, ids=[name for name, *_ in SOURCES])
def test_states_are_joined_by_what_the_package_has_for_it(
    source: tuple[str, str, str, str],
) -> None:
    functions = (node for node in ast.parse(source[3]).body if isinstance(node, ast.FunctionDef))
    (found,) = [node for node in functions if node.name == "merge_state"]
    theirs, ours = Signature.of(found, is_method=False), get_type_hints(MergeState.__call__)
    assert takes(theirs.returned, ours.pop("return"))
    # They are given by position.
    assert list(theirs.types) == list(ours)
    assert all(takes(theirs.types[name], kind) for name, kind in ours.items())


def test_what_is_given_without_a_keyword_has_its_place() -> None:
    # The workspace; the query and the cache.
    for name, source in ((DECODE, NOTED), (PREFILL, NOTED)):
        known = signatures(source, name)
        assert next(iter(known["__init__"].types)) == "float_workspace_buffer"
        assert (
            list(known["run"].types)[:2]
            == list(inspect.signature(DecodeWrapper.run).parameters)[1:]
        )


def test_a_call_that_the_package_does_not_take_is_seen() -> None:
    known = signatures(NOTED, DECODE)["plan"]
    assert not takes(known.types["num_qo_heads"], float)
    assert not takes(known.types["head_dim"], int | None)
    assert takes(known.types["sm_scale"], int)
    assert "head_dim_qk" not in known.types
