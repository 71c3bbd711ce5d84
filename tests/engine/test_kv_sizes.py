"""How large KV is, known without torch as torch knows it."""

from engine.kv_dtype import KV_DTYPES
from engine.kv_pool import KvLayout, KvPool
from engine.kv_sizes import BYTES_BY_DTYPE, block_elements


def test_every_dtype_of_a_pool_has_the_size_that_torch_has_for_it() -> None:
    assert {name: dtype.itemsize for name, dtype in KV_DTYPES.items()} == BYTES_BY_DTYPE


def test_a_block_is_as_large_as_its_part_of_a_pool() -> None:
    pool = KvPool(KvLayout(3, 2, 8, 4, "bfloat16"), num_blocks=5)
    assert pool.as_bytes().nbytes == 5 * block_elements(3, 2, 8, 4) * BYTES_BY_DTYPE["bfloat16"]
