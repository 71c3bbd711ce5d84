"""Copies beside computing: in the order in which they were asked for, after what was computed."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# torch has no types for streams and events.
_cuda: Any = torch.cuda


class CopyTicket(Protocol):
    """Copies that were asked for together."""

    def is_done(self) -> bool:
        """Whether they have run; never waits."""
        ...

    def wait(self) -> None:
        """Return when they have run.

        On a device without a bound: whoever waits is on the engine's thread, whose watchdog shows a
        worker that stands still as unhealthy.
        """
        ...

    @property
    def copy_s(self) -> float:
        """How long they took, in seconds; once they have run."""
        ...


class CopyStream(Protocol):
    """One queue of copies."""

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> CopyTicket:
        """Copy each first over its second, after everything that was ordered to be computed."""
        ...

    def hold_compute(self, ticket: CopyTicket) -> None:
        """What is ordered to be computed from now on runs after these copies. Does not wait."""
        ...


class CudaCopyStream:
    """A CUDA stream. Written for a GPU; not run where none was at hand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _cuda.Stream(device)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> "CudaCopyTicket":
        """See `CopyStream.copy`. Host memory must be pinned, else the call waits."""
        began, ended = _cuda.Event(enable_timing=True), _cuda.Event(enable_timing=True)
        self._stream.wait_stream(_cuda.current_stream(self._device))
        with _cuda.stream(self._stream):
            began.record()
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
            ended.record()
        return CudaCopyTicket(began, ended)

    def hold_compute(self, ticket: CopyTicket) -> None:
        """See `CopyStream.hold_compute`."""
        assert isinstance(ticket, CudaCopyTicket)
        _cuda.current_stream(self._device).wait_event(ticket.ended)


class CudaCopyTicket:
    """See `CopyTicket`."""

    def __init__(self, began: Any, ended: Any) -> None:
        self._began = began
        self.ended = ended

    def is_done(self) -> bool:
        return bool(self.ended.query())

    def wait(self) -> None:
        self.ended.synchronize()

    @property
    def copy_s(self) -> float:
        return float(self._began.elapsed_time(self.ended)) / 1e3
