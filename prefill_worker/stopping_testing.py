"""python -m prefill_worker.stopping_testing ...: a prefill worker that stops in mid-push.

After SIGUSR1 its next copy of KV writes one half, stops the whole process as SIGSTOP does, and
writes the other half when the process is let go on. For tests only.
"""

import asyncio
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import PushSettings, plain_copy
from kvtransfer.shared_memory import SharedMemoryTransport
from prefill_worker.serve import build_prefill
from runtime.process import StopRequested, run_process
from runtime.worker_config import PrefillConfig
from worker.assembly import RoleParts, Workplace
from worker.shell import run_worker


class StoppingCopy:
    """Told on one thread, used on others."""

    def __init__(self) -> None:
        self._shall_stop = False

    def arm(self) -> None:
        """The next copy stops half-way."""
        self._shall_stop = True

    def __call__(self, target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
        if not self._shall_stop:
            plain_copy(target, source)
            return
        self._shall_stop = False
        half = len(target) // 2
        plain_copy(target[:half], source[:half])
        # To this very thread: it goes not one step further, and all others stop with it.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        plain_copy(target[half:], source[half:])


async def serve_stopping(config: PrefillConfig, stop: StopRequested) -> None:
    """What prefill_worker.serve does, over a transport that obeys the signal."""
    copy = StoppingCopy()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, copy.arm)

    def build(place: Workplace) -> RoleParts:
        settings = PushSettings(config.kv_checksum_fraction, copy_bytes=copy)
        transport = SharedMemoryTransport(settings=settings, cluster=config.cluster_name)
        return build_prefill(replace(place, transports={transport.name: transport}))

    await run_worker(config, stop, build)


if __name__ == "__main__":
    sys.exit(run_process(PrefillConfig, serve_stopping))
