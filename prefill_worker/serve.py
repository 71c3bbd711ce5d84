"""The prefill worker's process: the shared worker shell around the prefill core."""

from prefill_worker.core import PrefillCore, PrefillSettings
from runtime.cores import available_cores, resolve_num_threads
from runtime.process import StopRequested
from runtime.worker_config import PrefillConfig
from scheduling.push_pacing import KvOverlap
from worker.assembly import RoleParts, Workplace
from worker.rank_transfer import push
from worker.shell import run_worker

# Of the time that a push may take, what one shall be predicted to take: a path may become slower,
# and what lies before it counts as well.
_MAX_SHARE_OF_TIMEOUT = 0.25


async def serve(config: PrefillConfig, stop: StopRequested) -> None:
    """Run prompt tasks until asked to stop. Raises: StartupError."""
    await run_worker(config, stop, build_prefill)


def build_prefill(place: Workplace) -> RoleParts:
    """A private KV pool whose blocks are pushed to whichever decode worker the router names."""
    config = place.config
    assert isinstance(config, PrefillConfig)
    # Of several ranks, what each tells is put together before the core hears of it.
    made = push(place.of_rank, place.post if config.tensor_parallel_size == 1 else None)
    place.make_other_pools(0)
    assert made.prepare_peer is not None
    core = PrefillCore(prefill_settings_of(config, place.num_blocks))
    return RoleParts(core, made.kv, made.pool, made.close, prepare_peer=made.prepare_peer)


def prefill_settings_of(config: PrefillConfig, num_blocks: int) -> PrefillSettings:
    """What the core decides by, of a worker with so many blocks."""
    return PrefillSettings(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefix_caching=config.prefix_caching,
        is_learning=True,
        kv_overlap=KvOverlap(config.kv_overlap),
        are_cores_shared=_are_cores_shared(config),
        max_push_s=config.push_timeout_s * _MAX_SHARE_OF_TIMEOUT,
    )


def _are_cores_shared(config: PrefillConfig) -> bool:
    """No core is left beside those of the engine, so pushes take their time from passes."""
    if config.device != "cpu":
        return False
    if config.shared_cores is not None:
        return True  # by turns it has all of them
    return resolve_num_threads(config.num_threads) >= available_cores()
