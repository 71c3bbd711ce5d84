"""Which processes this one can see: two with equal values may ask each other's process ids."""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def process_space() -> str:
    """The running kernel and the process id namespace; containers on one machine differ."""
    try:
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()}/{_PID_NAMESPACE.stat().st_ino}"
    except OSError:
        # No /proc, as on macOS: no containers either.
        return os.uname().nodename
