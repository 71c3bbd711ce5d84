"""How a pool and its tables lie in one stretch of memory that several processes map.

    header page | slots | expected | arrived | checksum | checksum_of | padding | blocks

Who writes what: the receiver writes the header and `expected`; a sender writes its own slot and,
for blocks granted to it, the arrival tables and the bytes. Every word has one writer at a time.
"""

import mmap
import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.errors import LayoutMismatch
from kvtransfer.protocol import Ids

SharedBytes: TypeAlias = mmap.mmap | bytearray
Words: TypeAlias = npt.NDArray[np.uint64]

PAGE_BYTES = 4096
# Columns of a sender's slot, which has a cache line of its own.
SLOT_CLAIM, SLOT_SENDER_KEY = 0, 1
_SLOT_WORDS = 8
_WORD_BYTES = 8
_NUM_BLOCK_TABLES = 4
# In `expected`: granted to nobody.
NO_GRANT = 0
# A claim packs two block ids into one word, which is written in one piece.
MAX_BLOCKS = (1 << 32) - 1

_MAGIC = b"TANDEMKV"
_VERSION = 1
# The same, with the blocks in the memory of a device.
_VERSION_OF_TABLES = 2
# Behind the header: by what the memory of the blocks is mapped, where it is not here.
HANDLE_OFFSET = 64
# magic, version, max_senders, num_blocks, block_bytes, incarnation
_HEADER = struct.Struct("<8sIIQQQ")


@dataclass(frozen=True, slots=True)
class PoolViews:
    """The shared memory as arrays. They alias it: a write is seen by every process."""

    # [max_senders, 8]
    slots: Words
    # [num_blocks] each: the granted generation; the generation whose bytes are complete; a
    # checksum; the generation that the checksum is of.
    expected: Words
    arrived: Words
    checksum: Words
    checksum_of: Words
    # [num_blocks * block_bytes]; empty where the blocks lie elsewhere
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Sizes, and the offsets that follow from them."""

    num_blocks: int
    block_bytes: int
    incarnation: int
    max_senders: int
    # False: tables only, the blocks lie in the memory of a device.
    has_data: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_blocks <= MAX_BLOCKS or self.block_bytes < 1 or self.max_senders < 1:
            raise LayoutMismatch(
                f"a pool of {self.num_blocks} blocks of {self.block_bytes} bytes for "
                f"{self.max_senders} senders cannot be laid out"
            )

    @property
    def data_offset(self) -> int:
        slots = self.max_senders * _SLOT_WORDS * _WORD_BYTES
        tables = _NUM_BLOCK_TABLES * self.num_blocks * _WORD_BYTES
        return -(-(PAGE_BYTES + slots + tables) // PAGE_BYTES) * PAGE_BYTES

    @property
    def data_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        return self.data_offset + (self.data_bytes if self.has_data else 0)

    def pack_header(self) -> bytes:
        """The bytes at offset 0, by which a sender recognises the pool."""
        return _HEADER.pack(
            _MAGIC,
            _VERSION if self.has_data else _VERSION_OF_TABLES,
            self.max_senders,
            self.num_blocks,
            self.block_bytes,
            self.incarnation,
        )

    def views(self, memory: SharedBytes) -> PoolViews:
        """Arrays over `memory`, which must be total_bytes long and zero when new."""
        offset = PAGE_BYTES
        num_slot_words = self.max_senders * _SLOT_WORDS
        slots = np.frombuffer(memory, np.uint64, num_slot_words, offset)
        offset += num_slot_words * _WORD_BYTES
        tables: list[Words] = []
        for _ in range(_NUM_BLOCK_TABLES):
            tables.append(np.frombuffer(memory, np.uint64, self.num_blocks, offset))
            offset += self.num_blocks * _WORD_BYTES
        return PoolViews(
            slots=slots.reshape(self.max_senders, _SLOT_WORDS),
            expected=tables[0],
            arrived=tables[1],
            checksum=tables[2],
            checksum_of=tables[3],
            data=np.frombuffer(memory, np.uint8)[self.data_offset : self.total_bytes],
        )


def read_header(first_page: bytes) -> PoolLayout:
    """Inverse of `pack_header`. Raises: LayoutMismatch for anything that is not such a pool."""
    if len(first_page) < _HEADER.size:
        raise LayoutMismatch("the export is shorter than a header")
    magic, version, max_senders, num_blocks, block_bytes, incarnation = _HEADER.unpack_from(
        first_page
    )
    if magic != _MAGIC or version not in (_VERSION, _VERSION_OF_TABLES):
        raise LayoutMismatch(
            f"the export has format {magic!r} {version}, not {_MAGIC!r} {_VERSION}"
        )
    has_data = version == _VERSION
    return PoolLayout(num_blocks, block_bytes, incarnation, max_senders, has_data)


def new_slots(max_senders: int) -> Words:
    """Slots [max_senders, 8] in this process's own memory, nobody in them."""
    return np.zeros((max_senders, _SLOT_WORDS), np.uint64)


def block_index(block_ids: Ids, num_blocks: int) -> npt.NDArray[np.int64]:
    """Ids as an index array. Raises: LayoutMismatch where one lies outside the pool."""
    ids = np.asarray(block_ids, dtype=np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= num_blocks):
        raise LayoutMismatch(
            f"block ids {ids.min()} to {ids.max()} are not all in a pool of {num_blocks} blocks"
        )
    return ids
