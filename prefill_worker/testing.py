"""python -m prefill_worker.testing ...: a prefill worker whose memory can be told to go bad.

SIGUSR1 damages the next copy of KV, SIGUSR2 every copy from then on. For tests only.
"""

import asyncio
import signal
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import PushSettings, plain_copy
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.testing import damaging_copy
from prefill_worker.serve import build_prefill
from runtime.process import StopRequested, run_process
from runtime.worker_config import PrefillConfig
from worker.assembly import RoleParts, Workplace
from worker.shell import run_worker


class DamageableCopy:
    """A copy that damages as many as it was told to; told on one thread, used on others."""

    def __init__(self) -> None:
        self._num_left = 0.0

    def damage(self, num_copies: float) -> None:
        """Flip a bit in each of the next copies."""
        self._num_left = num_copies

    def __call__(self, target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
        if self._num_left > 0:
            self._num_left -= 1
            damaging_copy(target, source)
        else:
            plain_copy(target, source)


async def serve_damageable(config: PrefillConfig, stop: StopRequested) -> None:
    """What prefill_worker.serve does, over a transport that obeys the two signals."""
    copy = DamageableCopy()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, copy.damage, 1)
    loop.add_signal_handler(signal.SIGUSR2, copy.damage, float("inf"))

    def build(place: Workplace) -> RoleParts:
        settings = PushSettings(config.kv_checksum_fraction, copy_bytes=copy)
        transport = SharedMemoryTransport(settings=settings, cluster=config.cluster_name)
        return build_prefill(replace(place, transports={transport.name: transport}))

    await run_worker(config, stop, build)


if __name__ == "__main__":
    sys.exit(run_process(PrefillConfig, serve_damageable))
