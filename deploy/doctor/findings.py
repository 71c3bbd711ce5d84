"""What the facts about a machine mean for KV, and what to do. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deploy.doctor.machine import DEFAULT_POOL_BYTES, Facts

State = Literal["ok", "note", "missing"]
_LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a way of KV needs."""

    subject: str
    state: State
    detail: str
    # What to do; None where there is nothing.
    fix: str | None = None


def findings_of(facts: Facts) -> list[Finding]:
    """In the order of the ways that need them."""
    return [
        _shared_memory(facts),
        *_namespaces(facts),
        *_gpus(facts),
        _nixl(facts),
        *_network(facts),
        _rdma(facts),
    ]


def _shared_memory(facts: Facts) -> Finding:
    fix = "docker: --shm-size=1g or --ipc; Kubernetes: an emptyDir with medium Memory at /dev/shm"
    if facts.shm_bytes is None:
        return Finding("/dev/shm", "missing", "there is none", fix)
    size, free = facts.shm_bytes >> 20, facts.shm_free_bytes >> 20
    detail = f"{size} MiB, {free} MiB free"
    if facts.shm_free_bytes < DEFAULT_POOL_BYTES:
        need = DEFAULT_POOL_BYTES >> 20
        detail += f"; a pool in host memory of the default size needs {need} MiB"
        return Finding("/dev/shm", "missing", detail, fix)
    return Finding("/dev/shm", "ok", detail)


def _namespaces(facts: Facts) -> Iterator[Finding]:
    for kind in ("pid", "ipc"):
        name = f"{kind.upper()} namespace"
        if kind not in facts.own_namespaces:
            yield Finding(name, "ok", "the machine's own")
            continue
        fix = (
            "put the workers of a node into one pod with shareProcessNamespace, or use docker "
            f"--{kind}=container:NAME"
        )
        detail = "a container's own: cuda_ipc needs both workers in one"
        yield Finding(name, "note", detail, fix)


def _gpus(facts: Facts) -> Iterator[Finding]:
    if facts.gpu_problem is not None:
        yield Finding("GPUs", "note", "none is used", facts.gpu_problem)
        return
    yield Finding("GPUs", "ok", f"{facts.num_gpus}")
    for pair, problem in facts.peer_problems:
        yield Finding(f"{pair}", "missing", *_in_two(problem))


def _nixl(facts: Facts) -> Finding:
    if facts.has_nixl:
        return Finding("nixl", "ok", "installed")
    return Finding("nixl", "note", "not installed", "pip install 'tandemserve[nixl]' to use it")


def _network(facts: Facts) -> Iterator[Finding]:
    if facts.kv_host_problem is not None:
        detail = f"nobody can listen on {facts.kv_host}: {facts.kv_host_problem}"
        fix = f"name an address of this machine: {_addresses_of(facts)}"
        yield Finding("kv_host", "missing", detail, fix)
    elif facts.kv_host.startswith(_LOOPBACK):
        detail = f"{facts.kv_host}, which other machines do not reach"
        fix = f"where workers are on several, set kv_host to one of {_addresses_of(facts)}"
        yield Finding("kv_host", "note", detail, fix)
    else:
        yield Finding("kv_host", "ok", facts.kv_host)
    for network in facts.networks:
        speed = f", {network.mbit_per_s / 1000:g} Gbit/s" if network.mbit_per_s else ""
        yield Finding(network.name, "ok", f"{', '.join(network.addresses)}{speed}")


def _rdma(facts: Facts) -> Finding:
    if facts.rdma_devices:
        return Finding("RDMA", "ok", ", ".join(facts.rdma_devices))
    detail = "no device: between machines nixl and nccl go over TCP"
    fix = "where there is such a card: load its driver, and give containers /dev/infiniband"
    return Finding("RDMA", "note", detail, fix)


def _addresses_of(facts: Facts) -> str:
    """Those that others may reach."""
    found = [
        f"{address} ({network.name})"
        for network in facts.networks
        for address in network.addresses
        if not address.startswith((*_LOOPBACK, "fe80:"))
    ]
    return ", ".join(found) or "none is up but the loopback; connect a network first"


def _in_two(problem: str) -> tuple[str, str]:
    what, _, fix = problem.partition("; ")
    return what, fix
