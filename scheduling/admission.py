"""Whether one more answer will fit a pool, over the whole of its life. Pure.

Blocks are handed out as answers grow, so what counts is not the sum of all predicted ends but the
highest total that will ever be held at once: those that end early make room for those that go on.
With paged KV this is what lending unwritten blocks (EcoServe) and embedding a request in another's
allocation (CacheOPT) aim at, without owners of single blocks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scheduling.block_pool import num_blocks_for


class Demand(NamedTuple):
    """One answer's hold on a pool, now and by prediction."""

    # KV that it has, or will have before its first decode step.
    num_tokens: int
    # Predicted steps until it ends and lets go of everything, >= 0.
    num_remaining: int


class Admission(Protocol):
    """Decides over a newcomer on a worker with room for its first blocks."""

    # Without this, nobody looks at demands.
    needs_demands: bool

    def admits(
        self, running: Sequence[Demand], newcomer: Demand, num_blocks: int, size: int
    ) -> bool:
        """May it join those that run, on so many blocks of that size?"""
        ...

    def admits_any(self, num_answers: int, num_tokens: int, num_blocks: int, size: int) -> bool:
        """Whether so many answers of so many tokens together, at the very most, may all be there,
        however far they have come: then nobody needs to look at them."""
        ...


class WhatIsReserved:
    """The reservation alone decides: it covers what the allocation rule asks for."""

    needs_demands = False

    def admits(
        self, running: Sequence[Demand], newcomer: Demand, num_blocks: int, size: int
    ) -> bool:
        """Always."""
        return True

    def admits_any(self, num_answers: int, num_tokens: int, num_blocks: int, size: int) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class FuturePeak:
    """The highest predicted total, the newcomer's included, stays within the pool."""

    # So many times the pool, where answers that are ahead of their pace make room for others.
    overcommit: float = 1.0
    needs_demands = True

    def __post_init__(self) -> None:
        if not 1 <= self.overcommit < math.inf:
            raise ValueError(f"overcommit must be at least 1 and finite, got {self.overcommit}")

    def admits(
        self, running: Sequence[Demand], newcomer: Demand, num_blocks: int, size: int
    ) -> bool:
        """An empty pool admits whatever fits at all."""
        return not running or (
            peak_blocks((*running, newcomer), size) <= self.overcommit * num_blocks
        )

    def admits_any(self, num_answers: int, num_tokens: int, num_blocks: int, size: int) -> bool:
        """No peak is higher than the sum of the ends."""
        return 2 * num_tokens + num_answers * size <= 2 * self.overcommit * num_blocks * size


def peak_blocks(demands: Iterable[Demand], size: int) -> int:
    """The highest number of blocks held at once if each answer takes one step at a time.

    The total only grows until somebody ends, so it is highest just before an end. O(n log n).
    Blocks are counted from tokens: half a block more for each answer that still runs.
    """
    in_order = sorted(demands, key=lambda demand: -demand.num_remaining)
    peak_half_tokens = num_tokens = 0
    # All that end with this one or later still run when it ends.
    for num_running, demand in enumerate(in_order, 1):
        num_tokens += demand.num_tokens
        half_tokens = 2 * (num_tokens + num_running * demand.num_remaining) + num_running * size
        peak_half_tokens = max(peak_half_tokens, half_tokens)
    return num_blocks_for(peak_half_tokens, 2 * size)
