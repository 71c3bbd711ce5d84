"""How many CPU cores this process may really use: affinity and cgroup limits, not the machine."""

import math
import os
from pathlib import Path

from runtime.cgroup import ROOT, cgroup_limit, text_of


def available_cores(root: Path = ROOT) -> int:
    """Cores that can run at once, at least 1; a fractional cgroup limit is rounded up.

    `root` is where /proc and /sys lie, for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = cgroup_limit(root, "cpu", _limit_v2, _limit_v1)
    return max(1, cores if limit is None else min(cores, math.ceil(limit)))


def resolve_num_threads(requested: int | None, num_processes: int = 1) -> int:
    """The threads of one engine: as asked, else its share of the cores among `num_processes`."""
    if requested is not None:
        return requested
    return max(1, available_cores() // num_processes)


def _limit_v2(folder: Path) -> float | None:
    """cpu.max holds `max 100000` or `<quota> <period>`."""
    words = (text_of(folder / "cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _limit_v1(folder: Path) -> float | None:
    """A quota of -1 means none."""
    quota = text_of(folder / "cpu.cfs_quota_us")
    period = text_of(folder / "cpu.cfs_period_us")
    if quota is None or period is None or int(quota) <= 0:
        return None
    return int(quota) / int(period)
