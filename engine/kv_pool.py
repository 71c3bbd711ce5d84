"""The KV cache of one worker as fixed-size blocks in one piece of memory.

A block holds `block_size` tokens of every layer and is contiguous, so that a transfer moves one
piece per block. Who owns a block is decided in `scheduling`; this file only stores bytes. Why the
dimensions have this order: docs/decisions/kv-block-layout.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class KvBufferMismatch(ValueError):
    """The memory given to a pool is not exactly what its layout needs."""

    def __init__(self, expected_bytes: int, actual_bytes: int, *, writable: bool) -> None:
        super().__init__(
            f"the KV pool needs a writable buffer of {expected_bytes} bytes, got "
            f"{actual_bytes} {'writable' if writable else 'read-only'} bytes; "
            "size it as num_blocks * KvLayout.block_bytes"
        )
        self.expected_bytes, self.actual_bytes = expected_bytes, actual_bytes


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What is inside a block; two pools can exchange blocks when their layouts are equal."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    # Tokens per block.
    block_size: int
    # "float32" or "bfloat16".
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"KV dtype {self.dtype!r} is unknown; use one of {sorted(_DTYPES)}")
        if min(self.num_layers, self.num_kv_heads, self.head_dim, self.block_size) < 1:
            raise ValueError(f"{self} has a dimension below 1; every dimension must be positive")

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def block_elements(self) -> int:
        """Numbers in a block: keys and values of every layer."""
        return self.num_layers * 2 * self.num_kv_heads * self.block_size * self.head_dim

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.torch_dtype.itemsize


class KvPool:
    """`num_blocks` blocks over a caller's buffer (which must outlive the pool) or own memory.

    Shape: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]; keys at 0, values at 1.
    """

    def __init__(
        self,
        layout: KvLayout,
        num_blocks: int,
        device: torch.device | str = "cpu",
        buffer: memoryview | None = None,
    ) -> None:
        """Take over `buffer` as it is (no clearing), or allocate cleared memory on `device`.

        Raises: KvBufferMismatch when the buffer is read-only or not num_blocks * block_bytes long;
            ValueError for a buffer together with another device than the CPU.
        """
        if num_blocks < 1:
            raise ValueError(f"a KV pool needs at least one block, not {num_blocks}")
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = torch.device(device)
        if buffer is None:
            shape = num_blocks * layout.block_elements
            self._flat = torch.zeros(shape, dtype=layout.torch_dtype, device=self.device)
        else:
            if self.device.type != "cpu":
                raise ValueError(f"a host buffer cannot back a pool on {self.device}; use cpu")
            expected = num_blocks * layout.block_bytes
            if buffer.nbytes != expected or buffer.readonly:
                raise KvBufferMismatch(expected, buffer.nbytes, writable=not buffer.readonly)
            self._flat = torch.frombuffer(buffer.cast("B"), dtype=layout.torch_dtype)
        self._blocks = self._flat.view(num_blocks, layout.block_elements)
        per_layer = 2 * layout.num_kv_heads
        rows = self._flat.view(-1, layout.block_size * layout.head_dim)
        tokens = self._flat.view(-1, layout.head_dim)
        self._head_rows = tuple(rows[i * per_layer :] for i in range(layout.num_layers))
        self._token_rows = tuple(
            tokens[i * per_layer * layout.block_size :] for i in range(layout.num_layers)
        )

    @property
    def tensor(self) -> Tensor:
        """The whole pool, shaped as the class says; shares memory."""
        lay = self.layout
        return self._flat.view(
            self.num_blocks, lay.num_layers, 2, lay.num_kv_heads, lay.block_size, lay.head_dim
        )

    def layer(self, index: int) -> Tensor:
        """[num_blocks, 2, num_kv_heads, block_size, head_dim] of one layer; shares memory."""
        return self.tensor[:, index]

    def head_rows(self, layer: int) -> Tensor:
        """Rows [block_size * head_dim], one per (block, kind, head), for index_select.

        The row of layer `layer` is `head_row_stride() * block + kind * num_kv_heads + head`.
        """
        return self._head_rows[layer]

    def token_rows(self, layer: int) -> Tensor:
        """Rows [head_dim], for index_copy_: a head row holds `block_size` of them."""
        return self._token_rows[layer]

    def head_row_stride(self) -> int:
        """Head rows from one block to the next."""
        return self.layout.num_layers * 2 * self.layout.num_kv_heads

    def zero_blocks(self, block_ids: Tensor) -> None:
        """Clear whole blocks, so that slots not yet written never carry another sequence's data."""
        self._blocks.index_fill_(0, block_ids, 0)

    def as_bytes(self) -> memoryview:
        """The pool as writable bytes [num_blocks * block_bytes]; shares memory.

        Raises: ValueError when the pool is not in host memory.
        """
        if self.device.type != "cpu":
            raise ValueError(f"the KV pool is on {self.device}; only a CPU pool has host bytes")
        return self._flat.view(torch.uint8).numpy().data
