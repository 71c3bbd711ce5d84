"""Events and actions as plain JSON values, and events back; exact, free of code, bounded by types.

A frozen dataclass or a named tuple is an object that names its class in "is"; fields that have
their default are left out, so a field that is added later needs no new version. Long runs of
integers below 2**32 are packed. Texts and secrets that no decision looks at are not written.
"""

import dataclasses
import types
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from hashlib import blake2b
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from router.events import EmitFinished, EmitTokens, RequestSpec
from scheduling.errors import TandemError
from scheduling.kv_export import KvDoor, KvExport
from scheduling.messages import TokensEmitted
from scheduling.prefix_chain import PrefixKey, PromptPrefix
from scheduling.sampling import StopParams

Json = Any
# Integers in a row that are written as their bytes.
_MIN_PACKED = 16
_DIGEST_BYTES = 12
# What the caller or the model wrote, and who may write into a pool: no decision looks at it.
_LEFT_OUT = frozenset(
    {
        (TokensEmitted, "text"),
        (TokensEmitted, "matched_stop"),
        (EmitFinished, "matched_stop"),
        (StopParams, "stop_strings"),
        (KvExport, "token"),
        (KvDoor, "token"),
    }
)
# Logprobs, finish reason and stop of nearly all tokens.
_GOES_ON = ((), None, None)
_EMPTY_BY_TYPE: Mapping[type, Any] = {str: "", tuple: ()}
_MISSING = object()
# What is done with a field.
_PLAIN, _LEAVE_OUT, _RENAME, _DERIVE = range(4)


class Floats:
    """Stands for array[float], which Python 3.11 cannot say when it runs."""


class Integers:
    """Stands for array[int]."""


CODE_BY_ARRAY = {Floats: "f", Integers: "I"}


class ValueMisfit(ValueError):
    """A plain value is none of what was to be read."""


class Encoder:
    """Values to plain ones."""

    def __init__(self, salt_key: bytes | None = None, *, is_abridging: bool = False) -> None:
        """`salt_key`: of these the names are made that stand for callers' cache salts; None keeps
        salts as they are. `is_abridging`: long runs of integers become their number and digest,
        which is enough to compare and cannot be read back.
        """
        self._salt_key = salt_key
        self._is_abridging = is_abridging
        # Of the workers met so far.
        self._block_sizes: set[int] = set()

    def met(self, block_size: int) -> None:
        """There is a worker with such blocks: salted prompts are told with their names."""
        self._block_sizes.add(block_size)

    def plain(self, value: Any) -> Json:
        """Raises: TypeError for what is neither an event nor an action nor part of one."""
        kind: Any = type(value)
        if value is None or kind in (int, float, str, bool):
            return value
        if kind is EmitTokens:
            return {
                "is": "EmitTokens",
                "request_id": value.request_id,
                "index": value.index,
                "tokens": self.plain(value.tokens),
            }
        if kind is TokensEmitted and value[4:] == _GOES_ON:
            return {
                "is": "TokensEmitted",
                "task_id": value.task_id,
                "first_token_index": value.first_token_index,
                "token_ids": self._run(value.token_ids),
            }
        if kind is tuple or kind is list:
            return self._run(value)
        if kind is array:
            return value.tolist()
        if kind is PromptPrefix:
            return self._prefix(value)
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, TandemError):
            return {"is": kind.__name__, "message": value.message}
        plain: dict[str, Json] = {"is": kind.__name__}
        for name, default, write in _fields_of(kind):
            part = getattr(value, name)
            if part is default or part == default:
                continue
            if write is not _PLAIN:
                if write is _LEAVE_OUT:
                    if type(part) in _EMPTY_BY_TYPE:
                        continue
                elif write is _RENAME:
                    part = self._salt(part)
                elif _is_own(value):
                    continue  # it is made anew from the prompt
                if part == default:
                    continue
            plain[name] = self.plain(part)
        return plain

    def _run(self, values: tuple[Any, ...] | list[Any]) -> Json:
        if len(values) >= _MIN_PACKED and type(values[0]) is int:
            packed = _packed(values)
            if packed is not None and self._is_abridging:
                digest = blake2b(packed, digest_size=_DIGEST_BYTES).hexdigest()
                return {"is": "run", "count": len(values), "digest": digest}
            if packed is not None:
                return {"is": "run", "u32": b64encode(packed).decode("ascii")}
        if values and type(values[0]) is int:
            return list(values)
        return [self.plain(value) for value in values]

    def _salt(self, salt: str) -> str:
        if not salt or self._salt_key is None:
            return salt
        return blake2b(salt.encode(), digest_size=8, key=self._salt_key).hexdigest()

    def _prefix(self, prefix: PromptPrefix) -> Json:
        token_ids, _ = prefix.made_from
        # What follows from a salt that is not told; the core may not have asked for it yet.
        for block_size in self._block_sizes:
            prefix.keys(block_size)
        keys = {str(size): list(keys) for size, keys in prefix.known_keys.items()}
        return {"is": "PromptPrefix", "token_ids": self.plain(token_ids), "keys": keys}


def hints_of(kind: type) -> dict[str, Any]:
    """The types of the fields."""
    return get_type_hints(kind, localns={"array": {float: Floats, int: Integers}})


def event_of(plain: Json, kinds: Any) -> Any:
    """The value of one of these dataclasses (a union). Raises: ValueMisfit."""
    return _reader_of(kinds)(plain)


def _is_own(spec: Any) -> bool:
    """The prefix is that of the prompt, and whoever reads the recording knows all of it."""
    if spec.prefix is None or spec.cache_salt:
        return False
    return bool(spec.prefix.made_from == (spec.prompt_token_ids, spec.cache_salt))


def _packed(values: tuple[Any, ...] | list[Any]) -> bytes | None:
    try:
        packed = array("I", values)
    except (TypeError, OverflowError):
        return None
    return _little_endian(packed).tobytes()


def _little_endian(packed: "array[int]") -> "array[int]":
    if array("I", [1]).tobytes()[0] != 1:
        packed.byteswap()
    return packed


@cache
def _fields_of(kind: Any) -> tuple[tuple[str, Any, int], ...]:
    """Names, defaults, and what is done with each, in order."""
    if dataclasses.is_dataclass(kind):
        pairs = [
            (field.name, _MISSING if field.default is dataclasses.MISSING else field.default)
            for field in dataclasses.fields(kind)
        ]
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        pairs = [(name, kind._field_defaults.get(name, _MISSING)) for name in kind._fields]
    else:
        raise TypeError(f"{kind.__name__} is no part of a recording; add it to {__name__}")
    return tuple((name, default, _writing(kind, name)) for name, default in pairs)


def _writing(kind: type, name: str) -> int:
    if (kind, name) in _LEFT_OUT:
        return _LEAVE_OUT
    if name == "cache_salt":
        return _RENAME
    return _DERIVE if (kind, name) == (RequestSpec, "prefix") else _PLAIN


# --- back ----------------------------------------------------------------------------------------

_Reader = Callable[[Json], Any]


@cache
def _reader_of(kind: Any) -> _Reader:
    """What reads a plain value of that type."""
    kind = getattr(kind, "__supertype__", kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is Literal:
        return lambda plain: _one_of(plain, arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    if kind in CODE_BY_ARRAY:
        return _array_reader(CODE_BY_ARRAY[kind])
    if kind is PromptPrefix:
        return _read_prefix
    if kind in (int, float, str, bool, type(None)):
        return _scalar_reader(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda plain: kind(_one_of(plain, tuple(item.value for item in kind)))
    return _object_reader(kind)


def _scalar_reader(kind: type) -> _Reader:
    # An instant may be written without a fraction, as it was given.
    kinds = (int, float) if kind is float else (kind,)

    def read(plain: Json) -> Any:
        if type(plain) not in kinds:
            raise ValueMisfit(f"{_shown(plain)} is no {kind.__name__}")
        return plain

    return read


def _union_reader(kinds: tuple[Any, ...]) -> _Reader:
    by_name = {kind.__name__: kind for kind in kinds if _is_object(kind)}
    others = [kind for kind in kinds if not _is_object(kind)]

    def read(plain: Json) -> Any:
        if type(plain) is dict and plain.get("is") in by_name:
            return _reader_of(by_name[plain["is"]])(plain)
        for kind in others:
            try:
                return _reader_of(kind)(plain)
            except ValueMisfit:
                continue
        raise ValueMisfit(f"{_shown(plain)} is none of {', '.join([*by_name, *map(str, others)])}")

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> _Reader:
    is_run = len(arguments) == 2 and arguments[1] is Ellipsis

    def read(plain: Json) -> Any:
        if type(plain) is dict and plain.get("is") == "run" and is_run:
            return _unpacked(plain)
        if type(plain) is not list or not (is_run or len(plain) == len(arguments)):
            raise ValueMisfit(f"{_shown(plain)} is no list of the right length")
        if is_run:
            each = _reader_of(arguments[0])
            return tuple(map(each, plain))
        pairs = zip(arguments, plain, strict=True)
        return tuple(_reader_of(kind)(part) for kind, part in pairs)

    return read


def _unpacked(plain: Mapping[str, Json]) -> tuple[int, ...]:
    try:
        packed = array("I", b64decode(plain["u32"], validate=True))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueMisfit(f"a packed run of integers cannot be read: {error}") from error
    return tuple(_little_endian(packed))


def _array_reader(code: str) -> _Reader:
    def read(plain: Json) -> Any:
        try:
            if type(plain) is list:
                return array(code, plain)
        except (TypeError, OverflowError):
            pass  # told below, without the reason: the value is shown
        raise ValueMisfit(f"{_shown(plain)} is no list of numbers")

    return read


def _object_reader(kind: Any) -> _Reader:
    default_by_name = {name: default for name, default, _ in _fields_of(kind)}
    hints = hints_of(kind)

    def read(plain: Json) -> Any:
        if type(plain) is not dict or plain.get("is") != kind.__name__:
            raise ValueMisfit(f"{_shown(plain)} is no {kind.__name__}")
        parts = {name: part for name, part in plain.items() if name != "is"}
        unknown = parts.keys() - default_by_name.keys()
        if unknown:
            raise ValueMisfit(
                f"{kind.__name__} has no {', '.join(sorted(unknown))}: a newer version wrote it"
            )
        values = {}
        for name, part in parts.items():
            try:
                values[name] = _reader_of(hints[name])(part)
            except ValueMisfit as misfit:
                raise ValueMisfit(f"{kind.__name__}.{name}: {misfit}") from None
        for name, default in default_by_name.items():
            if default is not _MISSING or name in values:
                continue
            if (kind, name) not in _LEFT_OUT:
                raise ValueMisfit(f"{kind.__name__} lacks {name}")
            values[name] = _EMPTY_BY_TYPE[hints[name]]
        return kind(**values)

    return read


def _read_prefix(plain: Json) -> PromptPrefix:
    if type(plain) is not dict or plain.get("is") != "PromptPrefix":
        raise ValueMisfit(f"{_shown(plain)} is no PromptPrefix")
    keys = plain.get("keys")
    if type(keys) is not dict or not all(size.isdecimal() for size in keys):
        raise ValueMisfit("the keys of a PromptPrefix are missing")
    token_ids = _reader_of(tuple[int, ...])(plain.get("token_ids"))
    read_keys = _reader_of(tuple[PrefixKey, ...])
    return PromptPrefix(token_ids, known_keys={int(n): read_keys(k) for n, k in keys.items()})


def _one_of(plain: Json, allowed: tuple[Any, ...]) -> Any:
    if type(plain) is not str or plain not in allowed:
        raise ValueMisfit(f"{_shown(plain)} is none of {', '.join(map(str, allowed))}")
    return plain


def _is_object(kind: Any) -> bool:
    if kind is PromptPrefix or dataclasses.is_dataclass(kind):
        return True
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _shown(plain: Json) -> str:
    text = repr(plain)
    return text if len(text) <= 60 else f"{text[:57]}..."
