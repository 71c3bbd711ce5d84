"""Which shared memory this process sees, so that no one maps that of another host or container."""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def is_of_this_machine(identity: str) -> bool:
    """Whether an identity is of this kernel, whichever of its mounts it tells of."""
    return identity.partition("/")[0] == _kernel()


def shared_memory_identity(directory: Path) -> str:
    """Equal for two processes exactly when a file of `directory` is the same file for both.

    The boot id tells kernels apart; the device number tells apart the private /dev/shm mounts of
    containers on one kernel.
    """
    about = directory.stat()
    return f"{_kernel()}/{about.st_dev}:{about.st_ino}"


def _kernel() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        # A sandbox without /proc: the host name is all that is left.
        return os.uname().nodename
