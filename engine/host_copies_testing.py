"""A fake of a device that computes while the host goes on: it tells what was waited for, and when.

Its numbers arrive as late as a real device might bring them.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# What stands for a tensor of a device that computes nothing.
MakeNumbers: TypeAlias = Callable[[Tensor], Tensor]


class LateCopies:
    """Notes "begun" for each copy that starts and "waited" for each that the host waits for."""

    def __init__(self, numbers_of: MakeNumbers = torch.clone) -> None:
        self.notes: list[str] = []
        self._numbers_of = numbers_of

    def start(self, tensors: Sequence[Tensor]) -> "LateCopy":
        """See `HostCopies.start`."""
        self.notes.append("begun")
        return LateCopy(self, tuple(map(self._numbers_of, tensors)))

    def settle(self) -> None:
        """See `HostCopies.settle`."""
        self.notes.append("settled")


class LateCopy:
    """See `HostCopy`."""

    def __init__(self, copies: LateCopies, tensors: tuple[Tensor, ...]) -> None:
        self._copies = copies
        self._tensors = tensors

    def wait(self) -> tuple[Tensor, ...]:
        """Now the device gets there."""
        self._copies.notes.append("waited")
        return self._tensors


def zeros_of(tensor: Tensor) -> Tensor:
    """What comes of a device that computes nothing."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype)
