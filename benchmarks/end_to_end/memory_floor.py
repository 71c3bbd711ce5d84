"""How fast one core reads memory: the floor under every decode step, which reads all weights."""

import time

import numpy as np

# Far beyond any cache.
_NUM_BYTES = 1 << 29
_REPEATS = 5


def read_bandwidth() -> float:
    """Bytes per second that one thread sums over; the best of a few looks."""
    numbers = np.ones(_NUM_BYTES // 8, np.int64)
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return _NUM_BYTES / best
