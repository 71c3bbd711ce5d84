"""What a process costs, from /proc: CPU of all its threads, resident memory."""

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, those that ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_mib(pid: int) -> float:
    """Memory that is in use now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def proportional_mib(pid: int) -> float:
    """The same, but a page that several processes map counts in parts: these add up."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def memory_of(pids: Mapping[str, int], when: str) -> dict[str, float]:
    """Both kinds of memory of each process, under names that say whose and when."""
    found: dict[str, float] = {}
    for name, pid in pids.items():
        found[f"{name}_{when}_rss_mib"] = resident_mib(pid)
        found[f"{name}_{when}_pss_mib"] = proportional_mib(pid)
    return found
