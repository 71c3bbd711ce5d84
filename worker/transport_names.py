"""The names of transports, and which a worker may have; neither tensors nor arrays are imported.

What each of them needs is in worker/transports.py, which makes them.
"""

from typing import Final

from runtime.errors import StartupError
from runtime.worker_config import WorkerConfig

SHARED_MEMORY: Final = "shared_memory"
CUDA_IPC: Final = "cuda_ipc"
TCP: Final = "tcp"
NIXL: Final = "nixl"
GLOO: Final = "gloo"
NCCL: Final = "nccl"

# Between pools in host memory, and between pools in GPU memory.
ON_HOST: Final = (SHARED_MEMORY, TCP, NIXL, GLOO, NCCL)
ON_GPU: Final = (CUDA_IPC, TCP, NCCL)
# What a worker takes unless it is told otherwise.
DEFAULT_ON_HOST: Final = (SHARED_MEMORY, TCP)
DEFAULT_ON_GPU: Final = (CUDA_IPC, TCP)
# Those that a machine may lack, which only a library can tell.
OF_LIBRARIES: Final = frozenset({NIXL, GLOO, NCCL})


def transport_names(config: WorkerConfig) -> tuple[str, ...]:
    """What a worker offers, or tries in this order. Raises: StartupError where it cannot."""
    is_on_gpu = config.device == "cuda"
    known, of_others = (ON_GPU, ON_HOST) if is_on_gpu else (ON_HOST, ON_GPU)
    if is_on_gpu and "transports" not in config.model_fields_set:
        return DEFAULT_ON_GPU
    for name in config.transports:
        if name in known:
            continue
        if name in of_others:
            other = "cpu" if is_on_gpu else "cuda"
            raise StartupError(
                f"transport {name!r} is for workers with --device {other}; use one of "
                f"{', '.join(known)}"
            )
        raise StartupError(f"transport {name!r} is unknown; use one of {', '.join(known)}")
    return config.transports
