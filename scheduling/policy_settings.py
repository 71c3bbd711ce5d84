"""A policy with some of its choices changed by `field=value`, as on a command line. Pure.

A changed policy's name is the one that it was made from and every change, `default+victims=
last-arrived`. The same name makes the same policy again, in any process and from any recording.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_type_hints

from scheduling.admission import FuturePeak, WhatIsReserved
from scheduling.length_choice import (
    BOUND_RULES,
    LENGTH_PREDICTORS,
    NOISY_ORACLE,
    length_predictor_named,
)
from scheduling.policies import POLICIES, policy_named
from scheduling.policy import (
    ArrivalOrder,
    BlockAllocation,
    DeadlineThenOccupancy,
    ExactAllocation,
    Policy,
)
from scheduling.victims import (
    CheapestToRecompute,
    LargestSlack,
    LastArrived,
    LoosestGoal,
    LowestQueue,
)

MAX_NAME_CHARS = 512
_MAX_GROWTH_RESERVE = 0.5
# A name may be followed by a colon and the first field of what it makes.
_OBJECTS: Mapping[str, Mapping[str, type]] = {
    "ordering": {"arrival": ArrivalOrder, "deadline": DeadlineThenOccupancy},
    "allocation": {"exact": ExactAllocation, "blocks": BlockAllocation},
    "admission": {"reserved": WhatIsReserved, "peak": FuturePeak},
    "victims": {
        "last-arrived": LastArrived,
        "cheapest-to-recompute": CheapestToRecompute,
        "loosest-goal": LoosestGoal,
        "lowest-queue": LowestQueue,
        "largest-slack": LargestSlack,
    },
}
_TRUTH = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_NONE = "none"
_NAME = "name"


class PolicyInvalid(ValueError):
    """There is no such policy, or it cannot be changed so; the message lists what there is."""


def policy_of(
    name: str,
    ordering: DeadlineThenOccupancy = DeadlineThenOccupancy(),  # noqa: B008 - frozen
) -> Policy:
    """The policy of that name, `default` or `default+field=value+field=value`.

    `ordering` has the widths of buckets where it orders by deadline and does not say them itself.
    Raises: PolicyInvalid.
    """
    base, *pairs = name.split("+")
    if base not in POLICIES:
        raise PolicyInvalid(f"policy {base!r} is unknown; use one of {', '.join(POLICIES)}")
    policy = policy_named(base, ordering.deadline_bucket_s, ordering.kvc_bucket_blocks)
    return changed(policy, pairs, ordering)


def changed(
    policy: Policy,
    pairs: Iterable[str],
    ordering: DeadlineThenOccupancy = DeadlineThenOccupancy(),  # noqa: B008 - frozen
) -> Policy:
    """The same with each `field=value`, which its new name tells. Raises: PolicyInvalid."""
    text_by_key: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key or not text:
            raise PolicyInvalid(f"{pair!r} is no field=value; {_known_fields()}")
        if key in text_by_key:
            raise PolicyInvalid(f"{key} is given twice")
        text_by_key[key] = text
    if not text_by_key:
        return policy
    name = policy.name
    # A part of an object comes after the object, whatever the order of the pairs.
    for key in sorted(text_by_key, key=_place):
        policy, told = _with(policy, key, text_by_key[key], ordering)
        name += f"+{key}={told}"
    if len(name) > MAX_NAME_CHARS:
        raise PolicyInvalid(f"so many changes of {policy.name}; name a policy nearer to it")
    _check(policy)
    return replace(policy, name=name)


def joined(name: str, pairs: Iterable[str]) -> str:
    """Of both, what `policy_of` reads."""
    return "+".join((name, *pairs))


def _place(key: str) -> tuple[int, str]:
    top, _, part = key.partition(".")
    names = [field.name for field in fields(Policy)]
    if top not in names or top == _NAME:
        raise PolicyInvalid(f"a policy has no field {top!r}; {_known_fields()}")
    return names.index(top), part


def _with(
    policy: Policy, key: str, text: str, ordering: DeadlineThenOccupancy
) -> tuple[Policy, str]:
    """The changed policy, and the value as its name tells it."""
    top, dot, part = key.partition(".")
    whole = getattr(policy, top)
    if dot:
        parts = [field.name for field in fields(whole)] if is_dataclass(whole) else []
        if part not in parts:
            there = f"it has {', '.join(parts)}" if parts else "it has none"
            raise PolicyInvalid(f"{top} of {policy.name} has no part {part!r}; {there}")
        value, told = _value(get_type_hints(type(whole))[part], key, text)
        return replace(policy, **{top: _made(key, lambda: replace(whole, **{part: value}))}), told
    if top in _OBJECTS:
        found = ordering if (top, text) == ("ordering", "deadline") else None
        value, told = _object(top, text) if found is None else (found, text)
    elif top == "predictor":
        value, told = _predictor(text)
    elif top == "bound":
        value, told = _choice(top, text, {_NONE: None, **{name: name for name in BOUND_RULES}})
    elif is_dataclass(whole):
        parts = [f"{top}.{field.name}" for field in fields(whole)]
        raise PolicyInvalid(f"{top} is set by its parts: {', '.join(parts)}")
    else:
        value, told = _value(get_type_hints(Policy)[top], key, text)
    change: dict[str, Any] = {top: value}
    return replace(policy, **change), told


def _object(field: str, text: str) -> tuple[object, str]:
    name, colon, parameter = text.partition(":")
    kind: Callable[..., object] | None = _OBJECTS[field].get(name)
    if kind is None or (colon and not _parameter_of(_OBJECTS[field][name])):
        raise PolicyInvalid(f"{field} cannot be {text!r}; use one of {_known_objects(field)}")
    if not colon:
        return kind(), name
    first = _parameter_of(_OBJECTS[field][name])
    value, told = _value(get_type_hints(kind)[first], f"{field}={name}", parameter)
    return _made(field, lambda: kind(value)), f"{name}:{told}"


def _made(key: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ValueError as error:
        raise PolicyInvalid(f"{key}: {error}") from error


def _predictor(text: str) -> tuple[str, str]:
    known = f"{', '.join(LENGTH_PREDICTORS)}, {NOISY_ORACLE}:0.5"
    name, colon, parameter = text.partition(":")
    if name == NOISY_ORACLE and colon:
        _, told = _value(float, "predictor", parameter)
        text = f"{name}:{told}"
    elif text not in LENGTH_PREDICTORS:
        raise PolicyInvalid(f"predictor cannot be {text!r}; use one of {known}")
    _made("predictor", lambda: length_predictor_named(text))
    return text, text


def _value(kind: Any, key: str, text: str) -> tuple[object, str]:
    """A number, a truth value, a member of an enumeration, or what may also be none of these."""
    kinds = get_args(kind) or (kind,)
    if NoneType in kinds and text == _NONE:
        return None, text
    (kind,) = (one for one in kinds if one is not NoneType)
    if kind is bool:
        value, _ = _choice(key, text, _TRUTH)
        return value, "yes" if value else "no"
    if issubclass(kind, StrEnum):
        return _choice(key, text, {str(member): member for member in kind})
    number = _number(kind, text)
    if number is None:
        what = "whole number" if kind is int else "number"
        raise PolicyInvalid(f"{key} cannot be {text!r}; use a {what}")
    return number, repr(number).replace("e+", "e")


def _choice(key: str, text: str, value_by_name: Mapping[str, Any]) -> tuple[Any, str]:
    if text not in value_by_name:
        raise PolicyInvalid(f"{key} cannot be {text!r}; use one of {', '.join(value_by_name)}")
    return value_by_name[text], text


def _number(kind: type, text: str) -> int | float | None:
    try:
        number: int | float = int(text) if kind is int else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parameter_of(kind: Any) -> str:
    """The field that stands behind the colon; empty where there is none."""
    return fields(kind)[0].name if is_dataclass(kind) and fields(kind) else ""


def _known_objects(field: str) -> str:
    return ", ".join(
        f"{name}[:{_parameter_of(kind).upper()}]" if _parameter_of(kind) else name
        for name, kind in _OBJECTS[field].items()
    )


def _known_fields() -> str:
    names = [field.name for field in fields(Policy) if field.name != _NAME]
    return f"the fields are {', '.join(names)}"


def _check(policy: Policy) -> None:
    """What the parts cannot refuse by themselves. Raises: PolicyInvalid."""
    if not 0 <= policy.growth_reserve <= _MAX_GROWTH_RESERVE:
        raise PolicyInvalid(f"growth_reserve must be a share from 0 to {_MAX_GROWTH_RESERVE}")
    if not 0 < policy.least_share <= 1:
        raise PolicyInvalid("least_share must be a share above 0, at most 1")
    if not policy.reserves_more_again and not isinstance(policy.victims, LastArrived):
        raise PolicyInvalid(
            "reserves_more_again=no lets answers take room from one another for ever unless "
            "victims=last-arrived; set that as well"
        )
    if policy.urgent_preempts and not policy.parked_yields:
        raise PolicyInvalid(
            "urgent_preempts=yes closes workers to the very prompts that it makes room for unless "
            "parked_yields=yes; set that as well"
        )
    _made("chunks", lambda: policy.batching_rule(1024, 64))
