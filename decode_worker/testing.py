"""python -m decode_worker.testing ...: a decode worker whose engine can be wedged.

SIGUSR1 makes the engine's present turn never end, SIGUSR2 lets it end. For tests only.
"""

import asyncio
import signal
import sys
import threading
from dataclasses import replace

from decode_worker.serve import build_decode
from runtime.process import StopRequested, run_process
from runtime.worker_config import DecodeConfig
from scheduling.worker_events import WorkerEvent
from worker.assembly import RoleParts, Workplace
from worker.engine_loop import KvSide
from worker.shell import run_worker


class WedgeableKv:
    """In front of the real one; each turn of the engine passes here."""

    def __init__(self, inner: KvSide, may_pass: threading.Event) -> None:
        self._inner = inner
        self._may_pass = may_pass
        self.perform = inner.perform

    @property
    def is_polling(self) -> bool:
        return self._inner.is_polling

    def poll(self) -> list[WorkerEvent]:
        self._may_pass.wait()
        return self._inner.poll()


async def serve_wedgeable(config: DecodeConfig, stop: StopRequested) -> None:
    """What decode_worker.serve does, with an engine that obeys the two signals."""
    may_pass = threading.Event()
    may_pass.set()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, may_pass.clear)
    loop.add_signal_handler(signal.SIGUSR2, may_pass.set)

    def build(place: Workplace) -> RoleParts:
        parts = build_decode(place)
        return replace(parts, kv=WedgeableKv(parts.kv, may_pass))

    await run_worker(config, stop, build)


if __name__ == "__main__":
    sys.exit(run_process(DecodeConfig, serve_wedgeable))
