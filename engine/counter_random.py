"""Random numbers that are a pure function of (seed, index).

A sequence that is moved, preempted or recomputed draws the same numbers again, whatever else is in
its batch. Source: SplitMix64, Steele, Lea and Flood 2014 (the finaliser is a bijection of 64 bits).
"""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

UintArray = npt.NDArray[np.uint64]


def uniforms(seeds: UintArray, indices: UintArray) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per (seed, index), with 53 random bits."""
    # The seed is mixed first, so that neighbouring seeds do not give shifted streams.
    keys = _mix(seeds + _GOLDEN)
    bits = _mix(keys + (indices + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: UintArray) -> UintArray:
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIER_1
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIER_2
    return values ^ (values >> np.uint64(31))
