"""For tests: any event or action there can be, recordings in memory, disks that fail."""

import dataclasses
import errno
import io
import threading
import types
from array import array
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from router.core_setup import CoreSetup
from router.recording.entries import RecordingHead, head_line
from router.recording.file import GzipLines, Recording
from router.recording.values import CODE_BY_ARRAY, hints_of
from router.state import RouterSettings
from scheduling.errors import QueueFull, TandemError
from scheduling.prefix_chain import PromptPrefix

_INTEGERS = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 70), st.integers(-(2**70), 2**70))


def values_of(kind: Any, left_out: Iterable[tuple[str, str]] = ()) -> SearchStrategy[Any]:
    """Any value of a type, built from its annotations; fields (class, name) of `left_out` are
    empty."""
    kind = getattr(kind, "__supertype__", kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        known = [each for each in arguments if each is not PromptPrefix]
        return st.one_of([values_of(each, left_out) for each in known])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        each = values_of(arguments[0], left_out)
        is_long = getattr(arguments[0], "__supertype__", arguments[0]) is int
        return st.lists(each, max_size=40 if is_long else 3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values_of(each, left_out) for each in arguments))
    if kind in CODE_BY_ARRAY:
        return _arrays(CODE_BY_ARRAY[kind])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    if isinstance(kind, type) and issubclass(kind, TandemError):
        return st.builds(QueueFull, st.text(max_size=5))
    scalars: dict[Any, SearchStrategy[Any]] = {
        int: _INTEGERS,
        float: st.floats(allow_nan=False),
        str: st.text(max_size=5),
        bool: st.booleans(),
        type(None): st.none(),
    }
    if kind in scalars:
        return scalars[kind]
    hints = hints_of(kind)
    names = (
        [field.name for field in dataclasses.fields(kind)]
        if dataclasses.is_dataclass(kind)
        else list(kind._fields)
    )
    empty = {name: _empty(hints[name]) for owner, name in left_out if owner == kind.__name__}
    # Fields that hold more of the same are drawn one level deep.
    nested = [name for name in names if hints[name] == tuple[kind, ...]]
    drawn = [name for name in names if name not in empty and name not in nested]
    fields = {name: values_of(hints[name], left_out) for name in drawn}
    flat = st.builds(kind, **fields, **empty)
    more = {name: st.lists(flat, max_size=2).map(tuple) for name in nested}
    return st.builds(kind, **fields, **empty, **more) if nested else flat


def _arrays(code: str) -> SearchStrategy[Any]:
    floats = st.floats(width=32, allow_nan=False)
    numbers: SearchStrategy[Any] = floats if code == "f" else st.integers(0, 2**32 - 1)
    return st.lists(numbers, max_size=3).map(lambda drawn: array(code, drawn))


def _empty(kind: Any) -> SearchStrategy[Any]:
    if get_origin(kind) is tuple:
        return st.just(())
    return st.just("") if kind is str else st.none()


def setup_of(policy: str = "default", **settings: Any) -> CoreSetup:
    """What a core of that policy is made from."""
    return CoreSetup(policy, 0.5, 4, True, RouterSettings(**settings))


def head_of(setup: CoreSetup) -> RecordingHead:
    """The first line of a recording of such a core."""
    return RecordingHead("0.0.0", "router-0", setup)


def packed(lines: Iterable[bytes], setup: CoreSetup | None = None) -> bytes:
    """A whole file; with `setup`, the head comes first."""
    file = io.BytesIO()
    gzip = GzipLines(file)
    head = () if setup is None else (head_line(head_of(setup)),)
    for line in (*head, *lines):
        gzip.write(line)
        gzip.flush()
    gzip.close()
    return file.getvalue()


def opened(content: bytes, **limits: int) -> Recording:
    """That file, to be read."""
    return Recording(Path("some.jsonl.gz"), io.BytesIO(content), **limits)


class FullDisk(io.BytesIO):
    """Takes so many bytes and no more."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._max_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


class SlowDisk(io.BytesIO):
    """Takes nothing until it is let go; what it got stays readable."""

    def __init__(self) -> None:
        super().__init__()
        self.is_written_to = threading.Event()
        self.may_write = threading.Event()
        self.content = b""

    def write(self, data: Any) -> int:
        self.is_written_to.set()
        self.may_write.wait()
        return super().write(data)

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()
