"""What a pass has computed, on its way back to the host while the next pass runs."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# torch has no types for events.
_cuda: Any = torch.cuda


class HostCopy(Protocol):
    """Tensors that are on their way together."""

    def wait(self) -> tuple[Tensor, ...]:
        """They, in host memory, once everything that was ordered before has run."""
        ...


class HostCopies(Protocol):
    """Copies to the host, in the order of what is computed."""

    def start(self, tensors: Sequence[Tensor]) -> HostCopy:
        """Copy what these hold when everything ordered so far has run. Does not wait."""
        ...

    def settle(self) -> None:
        """Return when nothing that was ordered runs any more."""
        ...


def host_copies_from(device: torch.device) -> HostCopies:
    """As the device needs them."""
    return CudaHostCopies(device) if device.type == "cuda" else CopiesAtOnce()


class CopiesAtOnce:
    """Of a CPU: what was ordered has run, and it lies in host memory."""

    def start(self, tensors: Sequence[Tensor]) -> "HereAlready":
        """See `HostCopies.start`."""
        return HereAlready(tuple(tensors))

    def settle(self) -> None:
        """Nothing runs."""


class HereAlready:
    """See `HostCopy`."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def wait(self) -> tuple[Tensor, ...]:
        return self._tensors


class CudaHostCopies:
    """Into pinned memory, behind the pass. Written for a GPU; not run where none was at hand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: Sequence[Tensor]) -> "CudaHostCopy":
        """See `HostCopies.start`."""
        copies: list[Tensor] = []
        for tensor in tensors:
            # From a pool of such memory: it is not locked anew each time.
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(copy.copy_(tensor, non_blocking=True))
        ended = _cuda.Event()
        ended.record(_cuda.current_stream(self._device))
        return CudaHostCopy(tuple(copies), ended)

    def settle(self) -> None:
        """See `HostCopies.settle`."""
        _cuda.current_stream(self._device).synchronize()


class CudaHostCopy:
    """See `HostCopy`. It is the event of one pass that is waited for, not the stream."""

    def __init__(self, tensors: tuple[Tensor, ...], ended: Any) -> None:
        self._tensors = tensors
        self._ended = ended

    def wait(self) -> tuple[Tensor, ...]:
        self._ended.synchronize()
        return self._tensors
