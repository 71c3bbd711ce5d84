"""All values of one kind in a run: exact while they are few, a histogram of known error after."""

import math
from array import array
from collections.abc import Iterable
from itertools import chain

from simulator.metrics.log_histogram import MAX_RELATIVE_ERROR, LogHistogram
from simulator.metrics.quantiles import Figures, Ordered, quantile

# 8 MiB.
MAX_EXACT_VALUES = 1 << 20
# Counted together once values are no longer kept.
_CHUNK = 4096
_FIGURES = (0.5, 0.9, 0.99)


class Distribution:
    """Finite values >= 0. Count, mean, smallest and largest are always exact."""

    def __init__(self, max_exact: int = MAX_EXACT_VALUES) -> None:
        self.count = 0
        self.smallest = math.inf
        self.largest = 0.0
        self._max_kept = max_exact
        self._kept: array[float] = array("d")
        self._histogram: LogHistogram | None = None
        # Of values that are no longer kept.
        self._sum = 0.0

    @property
    def relative_error(self) -> float:
        """Of a percentile, at most; 0 while every value is kept."""
        return 0.0 if self._histogram is None else MAX_RELATIVE_ERROR

    def add(self, value: float, times: int = 1) -> None:
        """Count one value, or so many alike."""
        self.count += times
        if value < self.smallest:
            self.smallest = value
        if value > self.largest:
            self.largest = value
        if times == 1:
            self._kept.append(value)
        else:
            self._kept.extend((value,) * times)
        if len(self._kept) > self._max_kept:
            self._count_kept()

    def add_all(self, values: Iterable[float]) -> None:
        """Count them all; the fast way."""
        more = array("d", values)
        if not more:
            return
        self.count += len(more)
        least, most = min(more), max(more)
        self.smallest = min(self.smallest, least)
        self.largest = max(self.largest, most)
        self._kept.extend(more)
        if len(self._kept) > self._max_kept:
            self._count_kept()

    def add_ordered(self, ascending: list[float]) -> None:
        """Count them all, the smallest first; faster still."""
        if not ascending:
            return
        self.count += len(ascending)
        self.smallest = min(self.smallest, ascending[0])
        self.largest = max(self.largest, ascending[-1])
        self._kept.fromlist(ascending)
        if len(self._kept) > self._max_kept:
            self._count_kept()

    def merge(self, other: "Distribution") -> None:
        """Count what another has counted as well; exact only if both are."""
        if not other.count:
            return
        if other._histogram is not None:
            self._count_kept()
            assert self._histogram is not None
            self._histogram.merge(other._histogram)
            self._sum += other._sum
            self.count += other.count - len(other._kept)
            self.smallest = min(self.smallest, other.smallest)
            self.largest = max(self.largest, other.largest)
        self.add_all(other._kept)

    @property
    def mean(self) -> float:
        """Needs at least one value."""
        return math.fsum(chain((self._sum,), self._kept)) / self.count

    def figures(self) -> Figures | None:
        """None without any value."""
        if not self.count:
            return None
        ordered = self.ordered()
        p50, p90, p99 = (quantile(ordered, share) for share in _FIGURES)
        return Figures(self.mean, p50, p90, p99, self.largest)

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """The value at each share; empty without any value."""
        if not self.count:
            return []
        ordered = self.ordered()
        return [quantile(ordered, share) for share in shares]

    def ordered(self) -> Ordered:
        """Every value by rank."""
        if self._histogram is None:
            return sorted(self._kept)
        self._count_kept()
        return self._histogram.ordered(self.smallest, self.largest)

    def _count_kept(self) -> None:
        if self._histogram is None:
            self._histogram = LogHistogram()
            self._max_kept = _CHUNK
        kept = self._kept.tolist()
        self._sum += math.fsum(kept)
        self._histogram.add_all(array("f", kept))
        self._kept = array("d")
