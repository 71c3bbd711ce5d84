"""The machine's shared memory, where decode workers of this machine have their KV pools."""

import shutil
from pathlib import Path

from kvtransfer import segment

_FOLDER = Path("/dev/shm")


def free_bytes() -> int | None:
    """None where there is no such folder."""
    return shutil.disk_usage(_FOLDER).free if _FOLDER.is_dir() else None


def require_room(num_bytes: int) -> None:
    """For pools of so many bytes together. Raises: ExportUnavailable."""
    segment.require_room(_FOLDER, num_bytes)


def remove_leftovers() -> None:
    """A worker that could not clean up leaves its KV pool behind."""
    if _FOLDER.is_dir():
        segment.remove_leftovers(_FOLDER)
