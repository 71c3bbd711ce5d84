"""How fast all cores read memory: the floor under every decode step, which reads all weights."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Far beyond any cache.
_NUM_BYTES = 1 << 29
_REPEATS = 5


def read_bandwidth(num_threads: int | None = None) -> float:
    """Bytes per second that so many threads sum over together, by default one for each core; the
    best of a few looks."""
    num_threads = num_threads or os.cpu_count() or 1
    parts = np.array_split(np.ones(_NUM_BYTES // 8, np.int64), num_threads)
    best = float("inf")
    # numpy lets go of the interpreter lock while it sums.
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in range(_REPEATS):
            started = time.perf_counter()
            list(threads.map(np.sum, parts))
            best = min(best, time.perf_counter() - started)
    return _NUM_BYTES / best
