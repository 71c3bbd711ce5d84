"""The decode worker's process: the shared worker shell around the decode core."""

from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.settings import ROOMY_GROWTH_BLOCKS, DecodeSettings
from decode_worker.turn_taking import new_core
from kvtransfer.slices import join_exports
from runtime.errors import StartupError
from runtime.logging import get_logger
from runtime.process import StopRequested
from runtime.worker_config import DecodeConfig
from scheduling.batch_time_recovery import Preemption
from scheduling.policy import Policy, growth_reserve_blocks
from scheduling.policy_settings import PolicyInvalid, policy_of
from worker.assembly import RoleParts, Workplace
from worker.rank_transfer import receive
from worker.shell import run_worker

log = get_logger()


async def serve(config: DecodeConfig, stop: StopRequested) -> None:
    """Run generation tasks until asked to stop. Raises: StartupError."""
    await run_worker(config, stop, build_decode)


def build_decode(place: Workplace) -> RoleParts:
    """A KV pool in memory that prefill workers write into."""
    config = place.config
    assert isinstance(config, DecodeConfig)
    try:
        policy = policy_of(config.policy_name)
    except PolicyInvalid as error:
        raise StartupError(str(error)) from error
    settings = decode_settings_of(config, policy, place.num_blocks, place.block_bytes)
    made = receive(place.of_rank, settings.num_swap_blocks)
    assert made.export is not None
    export = join_exports([made.export, *place.make_other_pools(settings.num_swap_blocks)])
    reserve = policy.growth_reserve if config.growth_reserve is None else config.growth_reserve
    num_growth_blocks = growth_reserve_blocks(place.num_blocks, reserve)
    core = new_core(settings, export)
    ahead = core if isinstance(core, PlanningAheadCore) else None
    if config.plan_ahead == "yes" and ahead is None:
        reason = "answers take turns" if settings.takes_turns else "the worker has several ranks"
        log.warning("nothing_planned_ahead", reason=reason)
    return RoleParts(
        core,
        made.kv,
        made.pool,
        made.close,
        export,
        num_growth_blocks=num_growth_blocks,
        num_host_blocks=settings.num_host_blocks,
        makes_room=settings.makes_room,
        before_pass=made.before_pass,
        ahead=ahead,
    )


def decode_settings_of(
    config: DecodeConfig, policy: Policy, num_blocks: int, block_bytes: int
) -> DecodeSettings:
    """What the core decides by, of a worker with so many blocks of so many bytes."""
    by_policy = config.preemption == "auto"
    preemption = policy.preemption if by_policy else Preemption(config.preemption)
    num_swap_blocks = config.swap_mib * 2**20 // block_bytes
    if preemption is Preemption.RECOMPUTE:
        num_swap_blocks = 0
    return DecodeSettings(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        roomy_growth_blocks=ROOMY_GROWTH_BLOCKS,
        prefix_caching=config.prefix_caching,
        num_swap_blocks=num_swap_blocks,
        preemption=preemption,
        swap_bytes_per_s=config.swap_bytes_per_s,
        max_num_batched_tokens=config.max_num_batched_tokens,
        is_mixed=config.role == "mixed",
        is_learning=True,
        batching=policy.batching_rule(config.max_num_batched_tokens, config.max_num_seqs),
        victims=policy.victims,
        is_eager=policy.is_preempting_eagerly,
        parked_yields=policy.parked_yields,
        outgrown_wait_in_line=policy.outgrown_wait_in_line,
        is_growing_ahead=policy.is_growing_ahead,
        plans_ahead=_plans_ahead(config),
    )


def _plans_ahead(config: DecodeConfig) -> bool:
    """Ranks hear of a pass when its tokens are known; a CPU computes a pass when it is ordered."""
    if config.tensor_parallel_size > 1:
        return False
    return config.plan_ahead == "yes" or (config.plan_ahead == "auto" and config.device == "cuda")
