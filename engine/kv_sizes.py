"""How large KV is. Without torch: a launcher asks before it starts anything."""

from collections.abc import Mapping
from typing import Final

# By the names that settings have for them; engine/kv_dtype.py has the types.
BYTES_BY_DTYPE: Final[Mapping[str, int]] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8_e4m3": 1,
}


def block_elements(num_layers: int, num_kv_heads: int, head_dim: int, block_size: int) -> int:
    """Numbers in a block of so many tokens: keys and values of every layer and head."""
    return num_layers * 2 * num_kv_heads * block_size * head_dim
