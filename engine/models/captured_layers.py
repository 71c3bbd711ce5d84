"""Layers as recorded work: for each of a few numbers of rows, everything between attentions once.

A pass of few tokens is bound by how fast Python orders kernels, not by the kernels. Recorded (a
CUDA graph), the work between two attentions is one order. Attention itself is ordered each time:
its shapes follow the sequences, and its cut of KV, which equal tokens need, gives another number
of kernels for longer ones (docs/decisions/graphs-between-attentions.md).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.models.layer_pass import LayerPass
from engine.outside_exchange import Recorder

Replay: TypeAlias = Callable[[], None]
# Token ids and positions [num_rows] to a pass over them.
BeginPass: TypeAlias = Callable[[Tensor, Tensor], LayerPass]


class Capture(Recorder, Protocol):
    """Records work on tensors that stay where they are."""

    def record(self, work: Callable[[], None]) -> Replay:
        """Do the work, maybe more than once, and give what does it again on the same tensors.

        Tensors that the work makes and keeps are overwritten by every replay.
        """
        ...


@dataclass(frozen=True, slots=True)
class CapturedShape:
    """What tensors between the segments look like."""

    num_layers: int
    num_heads: int
    head_dim: int
    device: torch.device


def bucket_sizes(max_rows: int, allowed: Sequence[int] = ()) -> tuple[int, ...]:
    """Numbers of rows to record, ascending, the last one at least `max_rows` where that may be.

    Powers of two up to 16, then multiples of 16, then of 64: less than half of a pass is padding.
    Where products agree at few numbers of rows only (`allowed`), those that these need.
    """
    sizes: list[int] = []
    size = 1
    while True:
        fitting = min((rows for rows in allowed if rows >= size), default=size)
        if not sizes or fitting > sizes[-1]:
            sizes.append(fitting)
        if sizes[-1] >= max_rows:
            return tuple(sizes)
        size = 2 * size if size < 16 else size + (16 if size < 128 else 64)


class CapturedLayers:
    """The layers of one model for passes of up to `max_rows` tokens. One pass at a time."""

    def __init__(
        self, shape: CapturedShape, sizes: Sequence[int], begin: BeginPass, capture: Capture
    ) -> None:
        """Record every size, the largest first, so that the smaller ones find memory."""
        self._sizes = tuple(sizes)
        recorded = {size: _Recorded(shape, size, begin, capture) for size in sizes[::-1]}
        self._recorded = tuple(recorded[size] for size in self._sizes)

    @property
    def max_rows(self) -> int:
        return self._sizes[-1]

    def __call__(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """See `Model.hidden`; the result is overwritten by the next pass."""
        at = bisect_left(self._sizes, token_ids.shape[0])
        return self._recorded[at].run(token_ids, positions, attention)


class _Recorded:
    """All segments for one number of rows, and the tensors that they share."""

    def __init__(
        self, shape: CapturedShape, num_rows: int, begin: BeginPass, capture: Capture
    ) -> None:
        self._token_ids = torch.zeros(num_rows, dtype=torch.int64, device=shape.device)
        self._positions = torch.zeros_like(self._token_ids)
        self._attended = torch.zeros(
            num_rows, shape.num_heads, shape.head_dim, dtype=torch.float32, device=shape.device
        )
        self._num_layers = shape.num_layers
        self._heads: list[tuple[Tensor, Tensor, Tensor]] = []
        # Set by each run of the first and of the last segment.
        self._pass: LayerPass | None = None
        self._hidden: Tensor | None = None
        self._replays = [
            capture.record(lambda index=index: self._segment(index, begin))  # type: ignore[misc]
            for index in range(shape.num_layers + 1)
        ]

    def _segment(self, index: int, begin: BeginPass) -> None:
        """From the attention of the layer before to that of layer `index`."""
        if index == 0:
            self._pass = begin(self._token_ids, self._positions)
        assert self._pass is not None
        if index:
            self._pass.take(index - 1, self._attended)
        if index == self._num_layers:
            self._hidden = self._pass.finish()
            return
        heads = self._pass.heads_of(index)
        # The latest run of a segment is the one that is replayed.
        self._heads[index:] = [heads]

    def run(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        num_rows = token_ids.shape[0]
        # Rows behind hold what an earlier pass left: numbers that nobody reads.
        self._token_ids[:num_rows].copy_(token_ids)
        self._positions[:num_rows].copy_(positions)
        for index, replay in enumerate(self._replays[:-1]):
            replay()
            query, key, value = self._heads[index]
            self._attended[:num_rows].copy_(
                attention.attend(index, query[:num_rows], key[:num_rows], value[:num_rows])
            )
        self._replays[-1]()
        assert self._hidden is not None
        return self._hidden
