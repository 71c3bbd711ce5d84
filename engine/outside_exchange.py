"""What ranks exchange, while the work around it is recorded: left out of the recording.

A recorded piece ends where ranks exchange and another begins behind it. So nothing is asked of the
library that moves the numbers, and every rank still makes the same calls in the same order.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from engine.tensor_parallel import RankExchange, Reduce


class Recorder(Protocol):
    """Whoever records work."""

    @property
    def is_recording(self) -> bool:
        """What is computed now will be replayed."""
        ...

    def leave_out(self, call: Callable[[], object]) -> None:
        """While it records: make this call at this place of every replay, and not now.

        The tensors that the call reads and writes are kept by it, so they stay where they are.
        """
        ...


class OutsideExchange:
    """A `RankExchange` over another one."""

    def __init__(self, inner: RankExchange) -> None:
        self._inner = inner
        # None while nothing of the model was ever recorded.
        self.recorder: Recorder | None = None

    @property
    def rank(self) -> int:
        """See `RankExchange`."""
        return self._inner.rank

    @property
    def size(self) -> int:
        """See `RankExchange`."""
        return self._inner.size

    @property
    def reduce(self) -> Reduce:
        """See `RankExchange`."""
        return self._inner.reduce

    def all_gather(self, rows: Tensor) -> Tensor:
        """See `RankExchange`; while it is recorded, of numbers that mean nothing."""
        return self._call(self._inner.all_gather, rows, self.size * rows.shape[1])

    def all_sum(self, rows: Tensor) -> Tensor:
        """See `RankExchange`; while it is recorded, of numbers that mean nothing."""
        return self._call(self._inner.all_sum, rows, rows.shape[1])

    def gather(self, rows: Tensor) -> Tensor | None:
        """See `RankExchange`. Nobody records the logits."""
        assert self.recorder is None or not self.recorder.is_recording
        return self._inner.gather(rows)

    def _call(self, exchange: Callable[[Tensor], Tensor], rows: Tensor, width: int) -> Tensor:
        recorder = self.recorder
        if recorder is None or not recorder.is_recording:
            return exchange(rows)
        out = rows.new_empty(rows.shape[0], width)
        recorder.leave_out(lambda: out.copy_(exchange(rows)))
        return out
