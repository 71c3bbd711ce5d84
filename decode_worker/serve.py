"""The decode worker's process: the shared worker shell around the decode core."""

from decode_worker.core import DecodeCore, DecodeSettings
from engine.kv_pool import KvPool
from runtime.clock import MonotonicClock
from runtime.config import DecodeConfig
from runtime.process import StopRequested
from worker.assembly import RoleParts, Workplace
from worker.kv_receive import KvReceive
from worker.shell import run_worker


async def serve(config: DecodeConfig, stop: StopRequested) -> None:
    """Run generation tasks until asked to stop. Raises: StartupError."""
    await run_worker(config, stop, build_decode)


def build_decode(place: Workplace) -> RoleParts:
    """A KV pool in memory that prefill workers write into."""
    config = place.config
    transport = place.transports[config.transports[0]]
    receiver = transport.create_receiver(
        place.num_blocks, place.layout.block_bytes, config.worker_id, place.incarnation
    )
    pool = KvPool(place.layout, place.num_blocks, config.device, receiver.buffer())
    kv = KvReceive(receiver, config.kv_arrival_timeout_s, MonotonicClock())
    settings = DecodeSettings(
        num_blocks=place.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
    )

    def close(timeout_s: float) -> None:
        receiver.close()

    export = receiver.export()
    return RoleParts(DecodeCore(settings, export), kv, pool, close, export)
