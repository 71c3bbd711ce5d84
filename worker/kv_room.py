"""How many KV blocks a rank of a worker has room for."""

from collections.abc import Callable

import torch

from engine.kv_memory import (
    CudaStatistics,
    DeviceStatistics,
    PassLimits,
    num_blocks_within,
    usage_of_largest_pass,
)
from runtime.worker_config import WorkerConfig
from worker.engine_fit import is_kv_measured, num_blocks_of
from worker.engine_loading import Engine, engine_errors_in_one_line


def room_of_rank(config: WorkerConfig, engine: Engine, rank: int = 0) -> int:
    """Blocks as set, or what the rank's GPU has room for. Raises: StartupError.

    Where it is measured the ranks compute a pass together. Raises also: RankLost.
    """
    if is_kv_measured(config):
        return measured_blocks(config, engine, rank, CudaStatistics)
    return num_blocks_of(config, engine.layout.block_bytes * config.tensor_parallel_size)


def measured_blocks(
    config: WorkerConfig,
    engine: Engine,
    rank: int,
    statistics_of: Callable[[torch.device], DeviceStatistics],
) -> int:
    """What a device has room for beside the largest pass. Raises: StartupError, RankLost.

    Each rank has a GPU of its own, which may have other things in it than those of the others.
    """
    limits = PassLimits(config.max_num_batched_tokens, config.max_num_seqs)
    statistics = statistics_of(engine.model.device)
    with engine_errors_in_one_line():
        usage = usage_of_largest_pass(
            engine.model, engine.attention, engine.layout, limits, statistics, rank
        )
        return num_blocks_within(usage, config.kv_memory_fraction, engine.layout.block_bytes)
