"""Which shared memory this process sees, so that no one maps that of another host or container."""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def shared_memory_identity(directory: Path) -> str:
    """Equal for two processes exactly when a file of `directory` is the same file for both.

    The boot id tells kernels apart; the device number tells apart the private /dev/shm mounts of
    containers on one kernel.
    """
    try:
        kernel = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        # A sandbox without /proc: the host name is all that is left.
        kernel = os.uname().nodename
    about = directory.stat()
    return f"{kernel}/{about.st_dev}:{about.st_ino}"
