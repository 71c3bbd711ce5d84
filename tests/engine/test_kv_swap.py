"""KV that comes back from host memory is the same, to the last bit."""

import random

import pytest
import torch

from engine.kv_pool import KvLayout, KvPool
from engine.kv_swap import KvSwap


def filled_pool(dtype: str, num_blocks: int = 12) -> KvPool:
    pool = KvPool(KvLayout(2, 2, 8, 4, dtype), num_blocks)
    raw = torch.frombuffer(pool.as_bytes(), dtype=torch.uint8)
    # Any bits, those of NaN and of negative zero included.
    raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8))
    return pool


def bits(pool: KvPool, block_id: int) -> bytes:
    size = pool.layout.block_bytes
    return bytes(pool.as_bytes()[block_id * size : (block_id + 1) * size])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_come_back_elsewhere_with_the_very_same_bits(dtype: str) -> None:
    rng = random.Random(3)
    pool = filled_pool(dtype)
    swap = KvSwap(pool, 9)
    for _ in range(30):
        number = rng.randint(1, 9)
        source, host = rng.sample(range(12), number), rng.sample(range(9), number)
        before = [bits(pool, block_id) for block_id in source]
        swap.take_out(source, host)
        pool.zero_blocks(torch.tensor(source))
        target = rng.sample(range(12), number)
        others = {b: bits(pool, b) for b in range(12) if b not in target}
        swap.bring_back(host, target)
        assert [bits(pool, block_id) for block_id in target] == before
        assert {b: bits(pool, b) for b in others} == others


def test_neighbours_on_both_sides_are_one_copy() -> None:
    swap = KvSwap(filled_pool("float32"), 8)
    assert swap.take_out((2, 3, 4, 9, 10), (0, 1, 2, 3, 5)) == 3
    assert swap.bring_back((0, 1, 2), (5, 6, 7)) == 1
    assert swap.take_out((), ()) == 0
