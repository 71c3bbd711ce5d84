"""Room for KV at each rank of a worker: measured by all together, with devices that are fake."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from engine.kv_memory import DeviceUsage
from engine.kv_memory_testing import FakeStatistics
from engine.tensor_parallel_testing import thread_exchanges
from engine.testing import make_random_model_folder
from runtime.errors import StartupError
from worker.engine_loading import load_engine
from worker.kv_room import measured_blocks, room_of_rank
from worker.rank_group_testing import NUM_BLOCKS, rank_config

PATIENCE_S = 60.0
GIB = 1 << 30
_Result = TypeVar("_Result")


def on_both(call: Callable[[int], _Result]) -> list[_Result]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(call, range(2), timeout=PATIENCE_S))


def test_each_rank_measures_its_own_device_in_a_pass_of_all(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, "qwen2", seed=9)
    config, ends = rank_config(tmp_path, 2), thread_exchanges(2)
    engines = [load_engine(config, end) for end in ends]
    assert {room_of_rank(config, engine) for engine in engines} == {NUM_BLOCKS}
    # Somebody else has a part of the second device.
    fakes = [FakeStatistics(DeviceUsage(8 * GIB, rank * GIB, 2 * GIB)) for rank in range(2)]

    def measured(rank: int) -> int:
        return measured_blocks(config, engines[rank], rank, lambda _: fakes[rank])

    first, second = on_both(measured)
    block_bytes = engines[0].layout.block_bytes
    assert abs((first - second) * block_bytes - GIB) < block_bytes
    assert all(fake.was_reset for fake in fakes)

    fakes[1] = FakeStatistics(DeviceUsage(8 * GIB, 7 * GIB, 2 * GIB))

    def refusal(rank: int) -> StartupError | None:
        try:
            measured(rank)
        except StartupError as error:
            return error
        return None

    no_refusal, refused = on_both(refusal)
    # The pass of all ranks has ended, so nobody waits for the one that refuses.
    assert no_refusal is None
    with pytest.raises(StartupError, match="--kv-memory-fraction"):
        raise refused or AssertionError("it has no room")
