"""Which shared memory this process sees, so that no one maps that of another host or container."""

import os
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class DeviceHost:
    """Where a pool in device memory lies; equal strings name one place."""

    # The file system of the tables.
    shared_memory: str
    # Inode numbers of namespaces.
    pid_namespace: str
    ipc_namespace: str
    device_id: str

    def __str__(self) -> str:
        return "/".join(
            (self.shared_memory, self.pid_namespace, self.ipc_namespace, self.device_id)
        )

    @classmethod
    def parse(cls, identity: str) -> "DeviceHost | None":
        """Inverse of `str`; None for anything else."""
        kernel, *rest = identity.split("/")
        if len(rest) != 4:
            return None
        mount, pid_namespace, ipc_namespace, device_id = rest
        return cls(f"{kernel}/{mount}", pid_namespace, ipc_namespace, device_id)

    def problem_with(self, theirs: "DeviceHost") -> str | None:
        """What this process does not share with the owner of a pool of the same machine."""
        if theirs.shared_memory != self.shared_memory:
            return "another /dev/shm of this machine; share one between the containers"
        if theirs.ipc_namespace != self.ipc_namespace:
            return (
                "another IPC namespace; put both into one pod, or use docker --ipc=container:NAME"
            )
        if theirs.pid_namespace != self.pid_namespace:
            return (
                "another PID namespace; set shareProcessNamespace in the pod of both, or use "
                "docker --pid=container:NAME"
            )
        return None


def device_host(directory: Path, device_id: str) -> DeviceHost:
    """Where a pool that this process allocates now lies."""
    return DeviceHost(
        shared_memory_identity(directory), _namespace("pid"), _namespace("ipc"), device_id
    )


def _namespace(kind: str) -> str:
    try:
        return str(Path("/proc/self/ns", kind).stat().st_ino)
    except OSError:
        return "unknown"
