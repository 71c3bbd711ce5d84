"""For tests: the engine of a worker with several real ranks, without sessions or a cluster."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from engine.model_runner import ModelRunner
from engine.tensor_parallel import Reduce
from runtime.logging import configure_logging
from runtime.worker_config import DecodeConfig, PrefillConfig, WorkerConfig
from scheduling.ids import Incarnation
from worker.engine_loading import load_engine, threads_of_rank
from worker.rank_group import RankGroup, rank_processes
from worker.rank_runner import GroupKv, GroupRunner
from worker.rank_transfer import RankPlace, push, receive
from worker.transports import transports_of

NUM_BLOCKS, NUM_SWAP_BLOCKS = 100, 8
_OF_ALL_ROLES = {"model", "worker_id", "tensor_parallel_size", "num_threads", "num_blocks"}
# Pools of two workers have two names.
_numbers = count()


@dataclass(frozen=True, slots=True)
class Ranks:
    """What an engine thread has of them."""

    group: RankGroup
    runner: GroupRunner
    kv: GroupKv
    # Of rank 0.
    own: ModelRunner
    # Set when the group has noticed that a rank is lost.
    was_lost: threading.Event


def rank_config(
    model: Path,
    size: int,
    timeout_s: float = 60.0,
    dtype: str = "auto",
    reduce: Reduce = "gather",
) -> DecodeConfig:
    """The settings of a mixed worker; `timeout_s`: how long ranks wait for each other."""
    return DecodeConfig.model_validate(
        {
            "model": model,
            "worker_id": f"ranks-{os.getpid()}-{next(_numbers)}",
            "role": "mixed",
            "tensor_parallel_size": size,
            "tensor_parallel_reduce": reduce,
            "dtype": dtype,
            "num_threads": 1,
            "engine_stall_s": timeout_s,
            "num_blocks": NUM_BLOCKS,
        }
    )


def pushing_config(model: Path, size: int) -> PrefillConfig:
    """The same of a prefill worker, which pushes over TCP."""
    settings = rank_config(model, size).model_dump(include=_OF_ALL_ROLES)
    return PrefillConfig.model_validate(settings | {"role": "prefill", "transports": ("tcp",)})


@contextmanager
def started_ranks(config: WorkerConfig) -> Iterator[Ranks]:
    """Loaded and ready inside the block; on the main thread."""
    with rank_processes(config) as group:
        assert group is not None, "several ranks are wanted"
        num_threads = threads_of_rank(config)
        torch.set_num_threads(num_threads)
        was_lost = threading.Event()
        group.watch(was_lost.set)
        engine = load_engine(config, group.begin(1, num_threads))
        # The other ranks have less room.
        num_blocks = group.agree_on_blocks(engine.arithmetic, NUM_BLOCKS + 1)
        place = RankPlace(
            config, Incarnation(1), engine.layout, num_blocks, transports_of(config), engine.slices
        )
        is_pushing = isinstance(config, PrefillConfig)
        made = push(place) if is_pushing else receive(place, NUM_SWAP_BLOCKS)
        own = ModelRunner(engine.model, made.pool, config.max_num_seqs, engine.attention)
        group.make_pools(num_blocks, NUM_SWAP_BLOCKS)
        try:
            yield Ranks(group, GroupRunner(own, group), GroupKv(made.kv, group), own, was_lost)
        finally:
            made.close(1.0)


def main(model: Path) -> None:
    """For tests that kill rank 0: say the process ids of the ranks, then wait for a line."""
    # Lines of the log go to stderr.
    configure_logging("decode")
    with started_ranks(rank_config(model, 2)) as ranks:
        print(os.getpid(), *ranks.group.process_ids, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
