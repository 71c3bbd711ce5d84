"""Token counts of which only the mean and three percentiles are published."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from simulator.traces.fields import MAX_TOKENS

# How far beyond the 99th percentile the longest may lie; p99 / p90 as long as that is less.
_MAX_TAIL = 10.0
_NUM_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Percentiles as published, straight lines of log length between them.

    Shortest and longest are not published: they are chosen so that the mean is the published one,
    or as near to it as the percentiles allow.
    """

    # (share of requests, tokens), ascending in both, shares from 0 to 1
    knots: tuple[tuple[float, float], ...]

    def at(self, share: float) -> int:
        """The length, at least 1, that this share (0 to 1) of the requests does not exceed."""
        lower_share, lower = self.knots[0]
        for upper_share, upper in self.knots[1:]:
            if share <= upper_share:
                part = (share - lower_share) / (upper_share - lower_share)
                return max(1, round(lower * math.pow(upper / lower, part)))
            lower_share, lower = upper_share, upper
        return max(1, round(lower))


def fitted(mean: float, p50: float, p90: float, p99: float) -> LengthDistribution:
    """From published figures, with 1 <= p50 <= p90 <= p99."""
    middle = 0.4 * _mean_between(p50, p90) + 0.09 * _mean_between(p90, p99)

    def mean_of(low: float, high: float) -> float:
        return 0.5 * _mean_between(low, p50) + middle + 0.01 * _mean_between(p99, high)

    longest = min(p99 * _MAX_TAIL, float(MAX_TOKENS))
    usual = min(p99 * p99 / p90, longest)
    if mean < mean_of(1.0, usual):
        low, high = 1.0, _solved(lambda x: mean_of(1.0, x), mean, p99, usual)
    elif mean <= mean_of(p50, usual):
        low, high = _solved(lambda x: mean_of(x, usual), mean, 1.0, p50), usual
    else:
        low, high = p50, _solved(lambda x: mean_of(p50, x), mean, usual, longest)
    return LengthDistribution(((0.0, low), (0.5, p50), (0.9, p90), (0.99, p99), (1.0, high)))


def _mean_between(low: float, high: float) -> float:
    """Of lengths whose logarithm is uniform between these."""
    # Below this the quotient loses its digits.
    if high - low < 1e-6 * high:
        return (low + high) / 2
    return (high - low) / math.log(high / low)


def _solved(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function has the value; the nearer end where it is outside."""
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        if rising(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
