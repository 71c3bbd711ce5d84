"""KV that comes back from host memory is the same, to the last bit."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.copy_stream import CopyStream, CudaCopyStream
from engine.copy_stream_testing import FakeCopyStream
from engine.kv_dtype import KV_DTYPES
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


@pytest.mark.parametrize("dtype", KV_DTYPES)
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


NUM_BLOCKS, NUM_SWAP_BLOCKS = 8, 6


class Pools:
    """A pool whose copies are late, and what every block ought to hold."""

    def __init__(self, device: str = "cpu", head_dim: int = 4) -> None:
        self.pool = KvPool(KvLayout(1, 1, head_dim, 2, "float32"), NUM_BLOCKS, device)
        self.stream = FakeCopyStream()
        stream: CopyStream = self.stream if device == "cpu" else CudaCopyStream(self.pool.device)
        self.swap = KvSwap(self.pool, NUM_SWAP_BLOCKS, stream)
        self.blocks = [0] * NUM_BLOCKS
        self.swapped = [0] * NUM_SWAP_BLOCKS
        self.num_written = 0
        # Host memory begins with anything.
        every_place = range(NUM_SWAP_BLOCKS)
        self.swap.take_out(every_place, every_place)
        self.swap.settle(every_place)
        self.swap.finished()

    def write(self, block_ids: list[int]) -> None:
        """As the kernels of a pass do, or a peer that pushes."""
        for block_id in block_ids:
            self.num_written += 1
            self.pool.tensor[block_id].fill_(self.num_written)
            self.blocks[block_id] = self.num_written

    def read(self, block_ids: list[int]) -> list[int]:
        return [int(self.pool.tensor[block_id].flatten()[0]) for block_id in block_ids]


SOME_BLOCKS = st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=3, unique=True)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["pass", "peer", "out", "in", "stream", "look"]), SOME_BLOCKS, st.randoms()
    ),
    max_size=40,
)


@given(operations=OPERATIONS)
def test_whoever_touches_a_block_meets_it_after_its_copies(
    operations: list[tuple[str, list[int], random.Random]],
) -> None:
    perform(Pools(), operations)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@settings(max_examples=30)
@given(operations=OPERATIONS)
def test_so_does_whoever_touches_one_on_a_gpu_whose_copies_run_beside_passes(
    operations: list[tuple[str, list[int], random.Random]],
) -> None:
    # Blocks of 2 MiB: copies are under way when the next call comes.
    perform(Pools("cuda", head_dim=1 << 17), operations)


def perform(pools: Pools, operations: list[tuple[str, list[int], random.Random]]) -> None:
    """Each operation meets what the ones before it have left."""
    num_begun = num_finished = 0
    for kind, block_ids, rng in operations:
        places = rng.sample(range(NUM_SWAP_BLOCKS), len(block_ids))
        match kind:
            case "pass":
                pools.swap.before_pass(np.array([block_ids]))
                assert pools.read(block_ids) == [pools.blocks[b] for b in block_ids]
                pools.write(block_ids)
            case "peer":
                pools.swap.settle(block_ids)
                assert pools.read(block_ids) == [pools.blocks[b] for b in block_ids]
                pools.write(block_ids)
            case "out":
                assert pools.swap.take_out(block_ids, places) > 0
                num_begun += 1
                for block_id, place in zip(block_ids, places, strict=True):
                    pools.swapped[place] = pools.blocks[block_id]
            case "in":
                assert pools.swap.bring_back(places, block_ids) > 0
                num_begun += 1
                for block_id, place in zip(block_ids, places, strict=True):
                    pools.blocks[block_id] = pools.swapped[place]
            case "stream":
                pools.stream.advance()
            case "look":
                num_finished += len(pools.swap.finished())
    pools.swap.settle(range(NUM_BLOCKS))
    assert pools.read(list(range(NUM_BLOCKS))) == pools.blocks
    assert num_finished + len(pools.swap.finished()) == num_begun
    assert not pools.swap.is_copying


def test_a_pass_over_other_blocks_does_not_wait_for_copies() -> None:
    pools = Pools()
    pools.write([0, 1, 2])
    pools.swap.take_out([0, 1], [0, 1])
    pools.swap.before_pass(np.array([[2, 2, 5]]))
    assert pools.swap.finished() == []
    pools.swap.before_pass(np.array([[2, 1]]))
    assert [swap.num_blocks for swap in pools.swap.finished()] == [2]
