"""How much memory processes here can have at the most: of the machine, or of the container.

Swap counts as well: what is slow there is not impossible.
"""

from functools import partial
from pathlib import Path

from runtime.cgroup import ROOT, cgroup_limit, text_of


def memory_bytes(root: Path = ROOT) -> int | None:
    """In all, in use or not; None where the system does not say.

    `root` is where /proc and /sys lie, for tests.
    """
    memory, swap = _of_machine(root, "MemTotal"), _of_machine(root, "SwapTotal") or 0.0
    of_groups = cgroup_limit(
        root, "memory", partial(_limit_v2, swap=swap), partial(_limit_v1, swap=swap)
    )
    limits = (None if memory is None else memory + swap, of_groups)
    known = [limit for limit in limits if limit is not None]
    return int(min(known)) if known else None


def _of_machine(root: Path, wanted: str) -> float | None:
    for line in (text_of(root / "proc/meminfo") or "").splitlines():
        name, _, amount = line.partition(":")
        if name == wanted:
            return 1024 * float(amount.split()[0])
    return None


def _limit_v2(folder: Path, swap: float) -> float | None:
    """Each of the two holds a number of bytes, or `max`; the second does not count the first."""
    memory = _bytes_in(folder / "memory.max")
    allowed = _bytes_in(folder / "memory.swap.max")
    return None if memory is None else memory + min(swap, swap if allowed is None else allowed)


def _limit_v1(folder: Path, swap: float) -> float | None:
    """Without a limit they are larger than any machine; the second counts the first as well."""
    memory = _bytes_in(folder / "memory.limit_in_bytes")
    both = _bytes_in(folder / "memory.memsw.limit_in_bytes")
    if memory is None:
        return both
    return memory + swap if both is None else min(memory + swap, both)


def _bytes_in(path: Path) -> float | None:
    text = (text_of(path) or "max").strip()
    return None if text == "max" else float(text)
