"""Limits that a container sets to this process: of its control group and of those above it."""

from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path("/")

ReadLimit = Callable[[Path], float | None]


def cgroup_limit(
    root: Path, controller: str, read_v2: ReadLimit, read_v1: ReadLimit
) -> float | None:
    """The tightest one; None without any.

    `root` is where /proc and /sys lie; the readers take the folder of one group.
    """
    found = (read(folder) for folder, read in _groups(root, controller, read_v2, read_v1))
    return min((limit for limit in found if limit is not None), default=None)


def text_of(path: Path) -> str | None:
    """The content of a small file; None where there is none."""
    try:
        # Names of groups are paths, which may be of any bytes.
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def _groups(
    root: Path, controller: str, read_v2: ReadLimit, read_v1: ReadLimit
) -> Iterator[tuple[Path, ReadLimit]]:
    for line in (text_of(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, read = root / "sys/fs/cgroup", read_v2
        elif controller in controllers.split(","):
            top, read = root / "sys/fs/cgroup" / controller, read_v1
        else:
            continue
        # In a container the path may name a folder of the host; what exists is read.
        folder = Path(path.lstrip("/"))
        for part in (folder, *folder.parents):
            yield top / part, read
