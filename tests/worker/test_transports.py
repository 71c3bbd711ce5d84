"""Which transports a worker takes on which device, and where its pool lies."""

from pathlib import Path

import pytest

from engine.kv_pool import KvLayout
from runtime.errors import StartupError
from runtime.worker_config import PrefillConfig
from worker.pool_memory import pool_over, private_pool
from worker.transports import transports_of

LAYOUT = KvLayout(2, 2, 8, 4, "float32")


def names_of(**settings: object) -> list[str]:
    """By these settings, in the order in which they are tried."""
    config = PrefillConfig.model_validate({"model": Path("/nowhere"), **settings})
    return list(transports_of(config))


def test_by_default_the_fastest_way_of_the_device_comes_first() -> None:
    assert names_of() == ["shared_memory", "tcp"]
    assert names_of(device="cuda") == ["cuda_ipc", "tcp"]


def test_what_was_named_is_taken_in_its_order() -> None:
    assert names_of(transports=("tcp", "shared_memory")) == ["tcp", "shared_memory"]
    assert names_of(device="cuda", transports=("tcp", "cuda_ipc")) == ["tcp", "cuda_ipc"]


@pytest.mark.parametrize(
    ("device", "name", "told"),
    [
        ("cuda", "shared_memory", "is for workers with --device cpu; use one of cuda_ipc"),
        ("cuda", "gloo", "is for workers with --device cpu"),
        ("cpu", "cuda_ipc", "is for workers with --device cuda; use one of shared_memory"),
        ("cpu", "pigeon", "'pigeon' is unknown; use one of shared_memory"),
        ("cuda", "pigeon", "'pigeon' is unknown; use one of cuda_ipc"),
    ],
)
def test_a_transport_of_another_device_or_of_none_ends_the_start(
    device: str, name: str, told: str
) -> None:
    with pytest.raises(StartupError, match=told):
        names_of(device=device, transports=(name, "tcp"))


def test_a_private_pool_in_host_memory_is_pushed_from_where_it_lies() -> None:
    pool, source = private_pool(LAYOUT, 3, None)
    assert isinstance(source, memoryview)
    assert source.nbytes == 3 * LAYOUT.block_bytes
    pool.tensor[0] = 1
    assert any(source[: LAYOUT.block_bytes])


def test_a_pool_over_host_memory_is_that_memory() -> None:
    memory = memoryview(bytearray(2 * LAYOUT.block_bytes))
    pool = pool_over(memory, LAYOUT, 2)
    pool.tensor[1] = 1
    assert not any(memory[: LAYOUT.block_bytes])
    assert any(memory[LAYOUT.block_bytes :])
