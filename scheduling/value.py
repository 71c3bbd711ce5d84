"""Values that are made by the dozen for every request, frame and pass.

A frozen dataclass sets each of its fields by a call, which was a tenth of what a router's and a
worker's core take. A value is frozen for the type checker instead, which sees all of our code; a
process does not look again.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_Value = TypeVar("_Value")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(kind: type[_Value]) -> type[_Value]:
    """Make a class a slotted dataclass that can be a key, and whose fields nobody sets."""
    return dataclass(slots=True, unsafe_hash=True)(kind)
