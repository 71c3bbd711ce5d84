"""Percentiles, defined once: linear between the two closest ranks."""

import math
from dataclasses import dataclass
from typing import Protocol


class Ordered(Protocol):
    """Values in ascending order, by rank."""

    def __len__(self) -> int: ...

    def __getitem__(self, rank: int, /) -> float: ...


@dataclass(frozen=True, slots=True)
class Figures:
    """How a distribution is told in one line; all in the unit of its values."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    def scaled(self, factor: float) -> "Figures":
        """The same in another unit."""
        return Figures(*(factor * one for one in self.as_tuple()))

    def as_tuple(self) -> tuple[float, float, float, float, float]:
        """In the order of the fields."""
        return self.mean, self.p50, self.p90, self.p99, self.max


def quantile(ordered: Ordered, share: float) -> float:
    """The value at rank (n - 1) * share, ranks from 0, linear between two ranks.

    Needs at least one value and 0 <= share <= 1. It is numpy's "linear" and the "inclusive" of
    Python's statistics.
    """
    assert len(ordered) > 0
    assert 0 <= share <= 1
    position = (len(ordered) - 1) * share
    rank = int(position)
    below = ordered[rank]
    if rank == position:
        return below
    return below + (ordered[rank + 1] - below) * (position - rank)


def mean_of_longest(ordered: Ordered, share: float) -> float:
    """Mean of the largest ceil(n * share) values; `share` in steps of a thousandth."""
    # In whole numbers: 10 * 0.1 must not become two values.
    num_longest = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    first = len(ordered) - num_longest
    if isinstance(ordered, list):
        return math.fsum(ordered[first:]) / num_longest
    return math.fsum(ordered[rank] for rank in range(first, len(ordered))) / num_longest
