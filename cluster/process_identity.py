"""Tell whether the process that holds a name is still alive, where that can be known."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

# Elsewhere than on Linux they are derived from the boot time and may differ by a rounding.
_SAME_PROCESS_S = 1.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process on one machine, distinguishable from a later one with the same pid."""

    # Machine and, on Linux, boot and pid namespace: equal only where pids mean the same.
    host: str
    pid: int
    # Seconds since boot on Linux, elsewhere since the epoch; by the operating system.
    created_at_s: float


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(this_host(), pid, _created_at_s(psutil.Process(pid)))


def this_host() -> str:
    """Names the machine, its boot and the pid namespace, as far as the system tells."""
    parts = [socket.gethostname()]
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if boot_id.exists():
        parts.append(boot_id.read_text(encoding="ascii").strip())
    pid_namespace = Path("/proc/self/ns/pid")
    if pid_namespace.is_symlink():
        parts.append(os.readlink(pid_namespace))
    return " ".join(parts)


def is_known_dead(process: ProcessIdentity) -> bool:
    """True only for a process of this very host that has ended; elsewhere nobody can know."""
    if process.host != this_host():
        return False
    try:
        found = psutil.Process(process.pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return True
        return abs(_created_at_s(found) - process.created_at_s) > _SAME_PROCESS_S
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _created_at_s(process: psutil.Process) -> float:
    """By a clock that nobody sets: since the epoch, a live process would seem to be another one
    after the wall clock was set."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return float(process.create_time())
    # The name before it is in parentheses and may hold anything; start time is the 22nd field.
    ticks = int(fields.rpartition(")")[2].split()[19])
    return float(ticks / os.sysconf("SC_CLK_TCK"))
