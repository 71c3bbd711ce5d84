from dataclasses import replace

import pytest
import torch

from engine.kv_pool import KvBufferMismatch, KvLayout, KvPool

LAYOUT = KvLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype="float32")


def test_block_bytes_count_keys_and_values_of_every_layer() -> None:
    assert LAYOUT.block_bytes == 3 * 2 * 2 * 8 * 4 * 4
    halved = KvLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype="bfloat16")
    assert halved.block_bytes == LAYOUT.block_bytes // 2


def test_a_block_is_contiguous_across_layers() -> None:
    pool = KvPool(LAYOUT, 5)
    pool.tensor[2].fill_(1.0)
    data = pool.as_bytes()
    ones = data[2 * LAYOUT.block_bytes : 3 * LAYOUT.block_bytes].cast("f").tolist()
    assert set(ones) == {1.0}
    assert not any(data[: 2 * LAYOUT.block_bytes])
    assert not any(data[3 * LAYOUT.block_bytes :])


def random_heads(pool: KvPool, first_head: int = 0) -> None:
    """The same numbers in the same heads of all layers, wherever these lie."""
    for layer in range(pool.layout.num_layers):
        for head in range(pool.layout.num_kv_heads):
            at = pool.head(layer, head)
            seed = torch.Generator().manual_seed(100 * layer + first_head + head)
            at.copy_(torch.randn(at.shape, generator=seed))


@pytest.mark.parametrize(("num_ranks", "groups"), [(1, 4), (2, 2), (2, 4), (4, 4), (4, 8)])
def test_the_blocks_of_pools_that_divide_the_heads_lie_end_to_end_in_a_whole_block(
    num_ranks: int, groups: int
) -> None:
    layout = replace(LAYOUT, num_kv_heads=8, head_groups=groups)
    share = replace(layout, num_kv_heads=8 // num_ranks, head_groups=groups // num_ranks)
    whole, parts = KvPool(layout, 2), [KvPool(share, 2) for _ in range(num_ranks)]
    random_heads(whole)
    for rank, part in enumerate(parts):
        random_heads(part, rank * share.num_kv_heads)
    joined = b"".join(bytes(part.as_bytes()[share.block_bytes :]) for part in parts)
    assert joined == bytes(whole.as_bytes()[layout.block_bytes :])


@pytest.mark.parametrize("groups", [1, 4])
def test_a_layer_is_one_view_where_heads_are_all_as_far_apart(groups: int) -> None:
    pool = KvPool(replace(LAYOUT, num_kv_heads=4, head_groups=groups), 3)
    random_heads(pool)
    for head in range(4):
        assert torch.equal(pool.layer(2)[:, :, head], pool.head(2, head))
    parted = KvPool(replace(LAYOUT, num_kv_heads=4, head_groups=2), 3)
    with pytest.raises(ValueError, match="take each with head"):
        parted.layer(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pool_over_a_buffer_shares_its_memory(dtype: str) -> None:
    layout = KvLayout(num_layers=1, num_kv_heads=1, head_dim=4, block_size=2, dtype=dtype)
    buffer = bytearray(3 * layout.block_bytes)
    pool = KvPool(layout, 3, buffer=memoryview(buffer))
    pool.layer(0)[1] = 2.0
    assert any(buffer[layout.block_bytes : 2 * layout.block_bytes])
    pool.as_bytes()[:] = bytes(len(buffer))
    assert not pool.tensor.any()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("head", [0, 1, 2, 3])
def test_rows_address_the_same_numbers_as_the_shaped_view(groups: int, head: int) -> None:
    layout = replace(LAYOUT, num_kv_heads=4, head_groups=groups)
    pool = KvPool(layout, 4)
    pool.tensor.copy_(torch.randn(pool.tensor.shape))
    block, kind, layer, offset = 3, 1, 2, 3
    row = layout.block_rows * block + int(layout.key_rows()[head]) + kind * layout.heads_of_group
    expected = pool.head(layer, head)[block, kind]
    assert torch.equal(pool.head_rows(layer)[row].view(4, 8), expected)
    token_row = row * layout.block_size + offset
    assert torch.equal(pool.token_rows(layer)[token_row], expected[offset])


def test_zero_blocks_clears_only_those_blocks() -> None:
    pool = KvPool(LAYOUT, 4)
    pool.tensor.fill_(1.0)
    pool.zero_blocks(torch.tensor([0, 2]))
    assert pool.tensor.flatten(1).any(dim=1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("num_bytes", [0, LAYOUT.block_bytes - 1, 2 * LAYOUT.block_bytes])
def test_a_buffer_of_the_wrong_size_is_refused(num_bytes: int) -> None:
    with pytest.raises(KvBufferMismatch, match="block_bytes"):
        KvPool(LAYOUT, 1, buffer=memoryview(bytearray(num_bytes)))


def test_a_pool_over_a_tensor_of_bytes_shares_its_memory_and_names_its_device() -> None:
    memory = torch.zeros(3 * LAYOUT.block_bytes, dtype=torch.uint8)
    pool = KvPool(LAYOUT, 3, buffer=memory)
    pool.tensor[1] = 1
    assert pool.device == memory.device
    assert not memory[: LAYOUT.block_bytes].any()
    assert memory[LAYOUT.block_bytes : 2 * LAYOUT.block_bytes].any()
    with pytest.raises(KvBufferMismatch):
        KvPool(LAYOUT, 2, buffer=memory)


def test_a_read_only_buffer_is_refused() -> None:
    with pytest.raises(KvBufferMismatch, match="read-only"):
        KvPool(LAYOUT, 1, buffer=memoryview(bytes(LAYOUT.block_bytes)))


def test_impossible_layouts_and_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="int4"):
        KvLayout(num_layers=1, num_kv_heads=1, head_dim=1, block_size=1, dtype="int4")
    with pytest.raises(ValueError, match="positive"):
        KvLayout(num_layers=1, num_kv_heads=0, head_dim=1, block_size=1, dtype="float32")
    with pytest.raises(ValueError, match="6 KV heads are not 4 groups"):
        replace(LAYOUT, num_kv_heads=6, head_groups=4)
    with pytest.raises(ValueError, match="at least one block"):
        KvPool(LAYOUT, 0)
