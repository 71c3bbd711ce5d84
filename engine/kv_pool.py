"""The KV cache of one worker as fixed-size blocks in one piece of memory.

A block holds `block_size` tokens of every layer and is contiguous, so that a transfer moves one
piece per block. So is each group of its heads, which is what moves between workers that divide the
heads among different numbers of processes (kvtransfer/slices.py). Who owns a block is decided in
`scheduling`; this file only stores bytes. Why the dimensions have this order:
docs/decisions/kv-block-layout.md.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kv_dtype import KV_DTYPES
from engine.kv_sizes import block_elements

# Of a block's dimensions, from the outermost: blocks of another order are of no use to each other.
BLOCK_ORDER: Final = "head groups, layers, keys and values, heads, tokens"


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
    # A name of KV_DTYPES, whatever the model computes in.
    dtype: str
    # Into how many pieces a block can be cut by heads. The heads of a group are neighbours in every
    # layer; to part them costs attention, so there are as few as have to move apart.
    head_groups: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in KV_DTYPES:
            known = sorted(KV_DTYPES)
            raise ValueError(f"KV dtype {self.dtype!r} is unknown; use one of {known}")
        if min(self.num_layers, self.num_kv_heads, self.head_dim, self.block_size) < 1:
            raise ValueError(f"{self} has a dimension below 1; every dimension must be positive")
        if self.head_groups < 1 or self.num_kv_heads % self.head_groups:
            raise ValueError(f"{self.num_kv_heads} KV heads are not {self.head_groups} groups")

    @property
    def torch_dtype(self) -> torch.dtype:
        return KV_DTYPES[self.dtype]

    @property
    def heads_of_group(self) -> int:
        return self.num_kv_heads // self.head_groups

    @property
    def block_rows(self) -> int:
        """Rows [block_size * head_dim] of a block: keys and values of every layer and head."""
        return self.num_layers * 2 * self.num_kv_heads

    def key_rows(self) -> npt.NDArray[np.int64]:
        """[num_kv_heads] rows of each head's keys, from the first row of its block and layer.

        Its values lie `heads_of_group` rows behind, the next layer twice as many.
        """
        group, in_group = np.divmod(np.arange(self.num_kv_heads), self.heads_of_group)
        rows: npt.NDArray[np.int64] = group * (self.block_rows // self.head_groups) + in_group
        return rows

    @property
    def block_elements(self) -> int:
        """Numbers in a block."""
        return block_elements(self.num_layers, self.num_kv_heads, self.head_dim, self.block_size)

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.torch_dtype.itemsize


class KvPool:
    """`num_blocks` blocks over a caller's buffer (which must outlive the pool) or own memory.

    Shape: [num_blocks, head_groups, num_layers, 2, heads_of_group, block_size, head_dim]; keys at
    0, values at 1.
    """

    def __init__(
        self,
        layout: KvLayout,
        num_blocks: int,
        device: torch.device | str = "cpu",
        buffer: memoryview | Tensor | None = None,
    ) -> None:
        """Take over `buffer` as it is (no clearing), or allocate cleared memory on `device`.

        A buffer is host memory, or a tensor uint8 [num_blocks * block_bytes] on the device.
        Raises: KvBufferMismatch when the buffer is read-only or not num_blocks * block_bytes long;
            ValueError for host memory together with another device than the CPU.
        """
        if num_blocks < 1:
            raise ValueError(f"a KV pool needs at least one block, not {num_blocks}")
        self.layout = layout
        self.num_blocks = num_blocks
        if buffer is None:
            shape = num_blocks * layout.block_elements
            self._flat = torch.zeros(shape, dtype=layout.torch_dtype, device=device)
        elif isinstance(buffer, Tensor):
            expected = num_blocks * layout.block_bytes
            if buffer.nbytes != expected:
                raise KvBufferMismatch(expected, buffer.nbytes, writable=True)
            self._flat = buffer.view(layout.torch_dtype)
        else:
            if torch.device(device).type != "cpu":
                raise ValueError(f"a host buffer cannot back a pool on {device}; use cpu")
            expected = num_blocks * layout.block_bytes
            if buffer.nbytes != expected or buffer.readonly:
                raise KvBufferMismatch(expected, buffer.nbytes, writable=not buffer.readonly)
            self._flat = torch.frombuffer(buffer.cast("B"), dtype=layout.torch_dtype)
        # With its index, as tensors name it.
        self.device = self._flat.device
        # torch moves and clears numbers of 8 bits on few devices, their bytes on all.
        moved = self._flat.view(torch.uint8) if layout.torch_dtype.itemsize == 1 else self._flat
        self._blocks = moved.view(num_blocks, layout.block_elements)
        rows = moved.view(-1, layout.block_size * layout.head_dim)
        tokens = moved.view(-1, layout.head_dim)
        per_layer = 2 * layout.heads_of_group
        self._head_rows = tuple(rows[i * per_layer :] for i in range(layout.num_layers))
        self._token_rows = tuple(
            tokens[i * per_layer * layout.block_size :] for i in range(layout.num_layers)
        )

    @property
    def tensor(self) -> Tensor:
        """The whole pool, shaped as the class says; shares memory."""
        lay = self.layout
        groups = (lay.head_groups, lay.num_layers, 2, lay.heads_of_group)
        return self._flat.view(self.num_blocks, *groups, lay.block_size, lay.head_dim)

    def layer(self, index: int) -> Tensor:
        """[num_blocks, 2, num_kv_heads, block_size, head_dim] of one layer; shares memory.

        Only the last two dimensions are contiguous. Raises: ValueError where heads are not the same
        distance apart, that is where there are several groups of several.
        """
        groups = self.tensor[:, :, index]
        if self.layout.head_groups == 1:
            return groups[:, 0]
        if self.layout.heads_of_group == 1:
            return groups[:, :, :, 0].transpose(1, 2)
        raise ValueError(
            f"no view holds the heads of a layer of {self.layout}; take each with head"
        )

    def head(self, layer: int, head: int) -> Tensor:
        """[num_blocks, 2, block_size, head_dim] of one KV head in one layer; shares memory."""
        group, in_group = divmod(head, self.layout.heads_of_group)
        return self.tensor[:, group, layer, :, in_group]

    def head_rows(self, layer: int) -> Tensor:
        """Rows [block_size * head_dim], one per (block, kind, head), for index_select.

        Where they lie is told by `KvLayout.key_rows`, from row `block_rows * block` on. Numbers of
        8 bits are bytes here, as uint8: view them as the layout's dtype.
        """
        return self._head_rows[layer]

    def token_rows(self, layer: int) -> Tensor:
        """Rows [head_dim], for index_copy_: a head row holds `block_size` of them, of its dtype."""
        return self._token_rows[layer]

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
