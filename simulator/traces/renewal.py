"""Renewal processes: arrivals with independent gaps of a given family and variation."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from simulator.traces.errors import FieldProblem

# Below this variation gaps are as good as equal, and the shape of a gamma distribution runs off.
_MIN_CV = 0.01
# After so many mean gaps a process has forgotten that it began with an arrival.
_BURN_IN_GAPS = 20.0
_NUM_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps of mean 1: Gamma(shape), or Weibull(shape)."""

    is_weibull: bool
    shape: float

    def draw(self, rng: Random) -> float:
        """One gap, in mean gaps."""
        if self.is_weibull:
            return rng.weibullvariate(1 / math.gamma(1 + 1 / self.shape), self.shape)
        return rng.gammavariate(self.shape, 1 / self.shape)


def gaps_named(family: str, cv: float) -> Gaps:
    """Gaps with this coefficient of variation. Raises: FieldProblem."""
    cv = max(cv, _MIN_CV)
    if family == "Gamma":
        return Gaps(False, cv**-2)
    if family == "Weibull":
        return Gaps(True, _weibull_shape(cv))
    raise FieldProblem("iat_family", family, "Gamma or Weibull")


def _weibull_shape(cv: float) -> float:
    """The larger the shape, the less variation; 0.1 has 430, 200 has less than 0.01."""
    low, high = math.log(0.1), math.log(200.0)
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        inverse = math.exp(-middle)
        squares = math.exp(math.lgamma(1 + 2 * inverse) - 2 * math.lgamma(1 + inverse))
        if squares - 1 > cv * cv:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


MarkT = TypeVar("MarkT")


@dataclass(frozen=True, slots=True)
class Window(Generic[MarkT]):
    """A stretch of time with one rate; `mark` comes back with each arrival inside."""

    start_s: float
    end_s: float
    rate_rps: float  # > 0
    gaps: Gaps
    mark: MarkT


def renewal_in_windows(
    windows: Iterable[Window[MarkT]], rng: Random
) -> Iterator[tuple[float, MarkT]]:
    """Arrivals, ascending, of one process that stands still between the windows."""
    # What is left of the present gap, in mean gaps.
    left: float | None = None
    for window in windows:
        if left is None:
            left = _first_gap(window.gaps, rng)
        now = window.start_s
        while (arrival_s := now + left / window.rate_rps) < window.end_s:
            yield arrival_s, window.mark
            now, left = arrival_s, window.gaps.draw(rng)
        # Rounding must not move an arrival before the next window.
        left = max(0.0, left - (window.end_s - now) * window.rate_rps)


def _first_gap(gaps: Gaps, rng: Random) -> float:
    """From a moment that is no arrival to the next one."""
    passed = 0.0
    while passed <= _BURN_IN_GAPS:
        passed += gaps.draw(rng)
    return passed - _BURN_IN_GAPS
