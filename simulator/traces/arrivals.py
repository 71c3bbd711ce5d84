"""Arrival times where a trace has none, or too coarse ones."""

import random
from collections.abc import Sequence
from itertools import groupby, pairwise
from statistics import median_low

# More than this share of the requests at one instant with the one before: the clock was coarse.
_COARSE_SHARE = 0.5


def poisson_arrivals(num_arrivals: int, rate_rps: float, rng: random.Random) -> list[float]:
    """Seconds from any start, ascending: independent gaps with an exponential distribution."""
    now, arrivals = 0.0, []
    for _ in range(num_arrivals):
        now += rng.expovariate(rate_rps)
        arrivals.append(now)
    return arrivals


def bucket_width(stamps: Sequence[float]) -> float | None:
    """How coarse the clock was that wrote these ascending stamps; None if it looks fine enough.

    It is coarse if most requests share their stamp with the one before; its step is then the
    median distance of two different stamps.
    """
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    steps = [gap for gap in gaps if gap > 0]
    if not steps or len(gaps) - len(steps) <= _COARSE_SHARE * len(gaps):
        return None
    return median_low(steps)


def spread_in_buckets(stamps: Sequence[float], width: float, rng: random.Random) -> list[float]:
    """Ascending stamps, each moved by up to `width` to a random place before the next stamp.

    Uniform and independent, as a Poisson process would lie inside the bucket: equal distances
    would be smoother than any real load.
    """
    buckets = [(stamp, sum(1 for _ in group)) for stamp, group in groupby(stamps)]
    spread: list[float] = []
    for index, (stamp, size) in enumerate(buckets):
        end = buckets[index + 1][0] if index + 1 < len(buckets) else stamp + width
        room = min(width, end - stamp)
        spread += sorted(stamp + rng.random() * room for _ in range(size))
    return spread
