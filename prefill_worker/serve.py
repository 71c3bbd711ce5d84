"""The prefill worker's process: the shared worker shell around the prefill core."""

from engine.kv_pool import KvPool
from kvtransfer.lane import LaneSettings
from kvtransfer.pusher import Pusher
from prefill_worker.core import PrefillCore, PrefillSettings
from runtime.clock import MonotonicClock
from runtime.config import PrefillConfig
from runtime.process import StopRequested
from worker.assembly import RoleParts, Workplace
from worker.kv_push import KvPush
from worker.shell import run_worker


async def serve(config: PrefillConfig, stop: StopRequested) -> None:
    """Run prompt tasks until asked to stop. Raises: StartupError."""
    await run_worker(config, stop, build_prefill)


def build_prefill(place: Workplace) -> RoleParts:
    """A private KV pool whose blocks are pushed to whichever decode worker the router names."""
    config = place.config
    assert isinstance(config, PrefillConfig)
    pool = KvPool(place.layout, place.num_blocks, config.device)
    kv = KvPush(place.post, config.push_timeout_s)
    settings = LaneSettings(
        sender_id=f"{config.worker_id}#{place.incarnation}",
        block_bytes=place.layout.block_bytes,
        max_jobs_per_peer=config.max_push_backlog,
        min_bytes_per_s=config.min_kv_bytes_per_s,
    )
    pusher = Pusher(place.transports, pool.as_bytes(), kv.on_done, settings, MonotonicClock())
    kv.attach(pusher)
    core = PrefillCore(prefill_settings_of(config, place.num_blocks))

    def close(timeout_s: float) -> None:
        pusher.close(timeout_s)

    return RoleParts(core, kv, pool, close, prepare_peer=kv.prepare_peer)


def prefill_settings_of(config: PrefillConfig, num_blocks: int) -> PrefillSettings:
    """What the core decides by, of a worker with so many blocks."""
    return PrefillSettings(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefix_caching=config.prefix_caching,
        is_learning=True,
    )
