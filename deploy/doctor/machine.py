"""What of this machine decides which ways work: memory, namespaces, GPUs, network. No measuring."""

import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from kvtransfer.errors import ExportUnavailable
from worker.transports import gpu_memory

_SHM: Final = Path("/dev/shm")
_RDMA: Final = Path("/sys/class/infiniband")
_MIB: Final = 1 << 20
# Of the first PID and IPC namespace of every Linux kernel.
_FIRST_NAMESPACES: Final = {"pid": 4026531836, "ipc": 4026531839}
# What a worker takes for KV in host memory by default.
DEFAULT_POOL_BYTES: Final = 256 * _MIB


@dataclass(frozen=True, slots=True)
class Network:
    """One interface that is up."""

    name: str
    addresses: tuple[str, ...]
    # 0: it does not say.
    mbit_per_s: int


@dataclass(frozen=True, slots=True)
class Facts:
    """This machine, as this process sees it."""

    # None: there is no /dev/shm.
    shm_bytes: int | None
    shm_free_bytes: int
    # "pid" and "ipc" that are not the machine's own; unknown ones are left out.
    own_namespaces: tuple[str, ...]
    num_gpus: int
    # Why there is none.
    gpu_problem: str | None
    # "gpu0 and gpu1": why one does not reach the other.
    peer_problems: tuple[tuple[str, str], ...]
    has_nixl: bool
    networks: tuple[Network, ...]
    kv_host: str
    # Why nobody can listen there; None where one can.
    kv_host_problem: str | None
    # InfiniBand and RoCE, by name.
    rdma_devices: tuple[str, ...] = ()


def look(kv_host: str) -> Facts:
    """Gather them; imports torch where it is installed."""
    num_gpus, gpu_problem = _gpus()
    shm = os.statvfs(_SHM) if _SHM.is_dir() else None
    return Facts(
        shm_bytes=shm and shm.f_blocks * shm.f_frsize,
        shm_free_bytes=shm.f_bavail * shm.f_frsize if shm else 0,
        own_namespaces=tuple(kind for kind in _FIRST_NAMESPACES if _is_own_namespace(kind)),
        num_gpus=num_gpus,
        gpu_problem=gpu_problem,
        peer_problems=tuple(_peer_problems(num_gpus)),
        has_nixl=importlib.util.find_spec("nixl_cu13") is not None,
        networks=tuple(_networks()),
        kv_host=kv_host,
        kv_host_problem=_listening_problem(kv_host),
        rdma_devices=tuple(sorted(path.name for path in _RDMA.glob("*"))),
    )


def _gpus() -> tuple[int, str | None]:
    if importlib.util.find_spec("torch") is None:
        return 0, "torch is not installed; pip install 'tandemserve[worker]'"
    try:
        gpu_memory(0)
    except ExportUnavailable as error:
        return 0, str(error)
    import torch

    return torch.cuda.device_count(), None


def _peer_problems(num_gpus: int) -> list[tuple[str, str]]:
    memories = [gpu_memory(index) for index in range(num_gpus)]
    problems: list[tuple[str, str]] = []
    for here, memory in enumerate(memories):
        for there in range(here + 1, num_gpus):
            problem = memory.reach_problem(memories[there].device_id)
            if problem is not None:
                problems.append((f"gpu{here} and gpu{there}", problem))
    return problems


def _is_own_namespace(kind: str) -> bool:
    try:
        return Path("/proc/self/ns", kind).stat().st_ino != _FIRST_NAMESPACES[kind]
    except OSError:
        return False


def _networks() -> list[Network]:
    states, addresses = psutil.net_if_stats(), psutil.net_if_addrs()
    found: list[Network] = []
    for name, state in states.items():
        own = tuple(
            entry.address.partition("%")[0]
            for entry in addresses.get(name, [])
            if entry.family in (socket.AF_INET, socket.AF_INET6)
        )
        if state.isup and own:
            found.append(Network(name, own, state.speed))
    return found


def _listening_problem(host: str) -> str | None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None
