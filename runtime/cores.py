"""How many CPU cores this process may really use: affinity and cgroup limits, not the machine."""

import math
import os
from pathlib import Path

_ROOT = Path("/")


def available_cores(root: Path = _ROOT) -> int:
    """Cores that can run at once, at least 1; a fractional cgroup limit is rounded up.

    `root` is where /proc and /sys lie, for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = _cgroup_limit(root)
    return max(1, cores if limit is None else min(cores, math.ceil(limit)))


def resolve_num_threads(requested: int | None, num_processes: int = 1) -> int:
    """The threads of one engine: as asked, else its share of the cores among `num_processes`."""
    if requested is not None:
        return requested
    return max(1, available_cores() // num_processes)


def _cgroup_limit(root: Path) -> float | None:
    """The tightest limit of this process's cgroup and those above it; None without one."""
    limits: list[float] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, read_limit = root / "sys/fs/cgroup", _limit_v2
        elif "cpu" in controllers.split(","):
            top, read_limit = root / "sys/fs/cgroup/cpu", _limit_v1
        else:
            continue
        # In a container the path may name a folder of the host; what exists is read.
        folder = Path(path.lstrip("/"))
        for part in (folder, *folder.parents):
            limit = read_limit(top / part)
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def _limit_v2(folder: Path) -> float | None:
    """cpu.max holds `max 100000` or `<quota> <period>`."""
    words = (_read(folder / "cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _limit_v1(folder: Path) -> float | None:
    """A quota of -1 means none."""
    quota = _read(folder / "cpu.cfs_quota_us")
    period = _read(folder / "cpu.cfs_period_us")
    if quota is None or period is None or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return None
