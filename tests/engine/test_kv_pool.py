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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pool_over_a_buffer_shares_its_memory(dtype: str) -> None:
    layout = KvLayout(num_layers=1, num_kv_heads=1, head_dim=4, block_size=2, dtype=dtype)
    buffer = bytearray(3 * layout.block_bytes)
    pool = KvPool(layout, 3, buffer=memoryview(buffer))
    pool.layer(0)[1] = 2.0
    assert any(buffer[layout.block_bytes : 2 * layout.block_bytes])
    pool.as_bytes()[:] = bytes(len(buffer))
    assert not pool.tensor.any()


def test_rows_address_the_same_numbers_as_the_shaped_view() -> None:
    pool = KvPool(LAYOUT, 4)
    pool.tensor.copy_(torch.randn(pool.tensor.shape))
    block, kind, head, layer, offset = 3, 1, 1, 2, 3
    row = pool.head_row_stride() * block + kind * LAYOUT.num_kv_heads + head
    expected = pool.layer(layer)[block, kind, head]
    assert torch.equal(pool.head_rows(layer)[row].view(4, 8), expected)
    token_row = row * LAYOUT.block_size + offset
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


def test_a_read_only_buffer_is_refused() -> None:
    with pytest.raises(KvBufferMismatch, match="read-only"):
        KvPool(LAYOUT, 1, buffer=memoryview(bytes(LAYOUT.block_bytes)))


def test_impossible_layouts_and_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        KvLayout(num_layers=1, num_kv_heads=1, head_dim=1, block_size=1, dtype="float16")
    with pytest.raises(ValueError, match="positive"):
        KvLayout(num_layers=1, num_kv_heads=0, head_dim=1, block_size=1, dtype="float32")
    with pytest.raises(ValueError, match="at least one block"):
        KvPool(LAYOUT, 0)
