"""What NCCL's process groups must be told by the environment, before a process has threads.

By default torch ends the whole process when a peer is lost: here that costs one pair. It reads
these when a group is made, for the ranks of one worker as well: what those wait for has bounds of
its own. Imports no torch.
"""

import ctypes
import os
from typing import Final

SETTINGS: Final = {
    # A transfer that failed is told to who waits for it, and ends nothing.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # The first group of a process has a thread that asks its store every second whether some rank
    # has failed, and ends the process then, or when another thread of the library stands still.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    # After a failure its watchdog sleeps four times as long, and who ends the group waits for that.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
    # What a failed device means is the worker's to say.
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    # It warns that transfers of a pair wait for one another. They do.
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "0",
}


def prepare_process() -> None:
    """To be called first in a process: changing the environment is not safe beside threads."""
    for name, value in SETTINGS.items():
        os.putenv(name, value)


def missing() -> list[str]:
    """Settings, as NAME=VALUE, that this process does not have."""
    # As the library sees it; what Python keeps of the environment is of the start.
    getenv = ctypes.CDLL(None).getenv
    getenv.argtypes, getenv.restype = (ctypes.c_char_p,), ctypes.c_char_p
    return [
        f"{name}={value}"
        for name, value in SETTINGS.items()
        if getenv(name.encode()) != value.encode()
    ]
