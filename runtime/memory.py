"""How much memory processes here can have at the most: of the machine, or of the container."""

from pathlib import Path

from runtime.cgroup import ROOT, cgroup_limit, text_of


def memory_bytes(root: Path = ROOT) -> int | None:
    """In all, in use or not; None where the system does not say.

    `root` is where /proc and /sys lie, for tests.
    """
    limits = (_of_machine(root), cgroup_limit(root, "memory", _limit_v2, _limit_v1))
    known = [limit for limit in limits if limit is not None]
    return int(min(known)) if known else None


def _of_machine(root: Path) -> float | None:
    for line in (text_of(root / "proc/meminfo") or "").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            return 1024 * float(amount.split()[0])
    return None


def _limit_v2(folder: Path) -> float | None:
    """memory.max holds a number of bytes, or `max`."""
    text = (text_of(folder / "memory.max") or "max").strip()
    return None if text == "max" else float(text)


def _limit_v1(folder: Path) -> float | None:
    """Without a limit it is larger than any machine."""
    text = text_of(folder / "memory.limit_in_bytes")
    return None if text is None else float(text)
