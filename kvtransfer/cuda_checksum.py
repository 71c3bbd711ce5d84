"""`word_checksum` over blocks on a device, in torch's signed words; the bits are the same."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from kvtransfer.word_checksum import FACTOR, FIRST_SHIFT, SECOND_SHIFT, STEP

# Blocks that are looked at together: each takes three times its size meanwhile.
_MAX_BLOCKS: Final = 8


def block_checksums(pool: Tensor, block_bytes: int, block_ids: Sequence[int]) -> list[int]:
    """64 bits for each block of a pool [num_bytes] uint8; waits for the device.

    Runs on the current stream.
    """
    words = pool.view(torch.int64).view(-1, block_bytes // 8)
    positions = torch.arange(1, words.shape[1] + 1, dtype=torch.int64, device=pool.device)
    positions *= _signed(STEP)
    sums: list[Tensor] = []
    for start in range(0, len(block_ids), _MAX_BLOCKS):
        ids = torch.tensor(block_ids[start : start + _MAX_BLOCKS], device=pool.device)
        mixed = words.index_select(0, ids).add_(positions)
        mixed.bitwise_xor_(_shifted(mixed, FIRST_SHIFT))
        mixed *= _signed(FACTOR)
        mixed.bitwise_xor_(_shifted(mixed, SECOND_SHIFT))
        sums.append(mixed.sum(dim=1))
    if not sums:
        return []
    return [value % (1 << 64) for value in torch.cat(sums).tolist()]


def _shifted(words: Tensor, num_bits: int) -> Tensor:
    """A shift to the right that brings in zeros: torch's own brings in the sign."""
    return words.bitwise_right_shift(num_bits).bitwise_and_((1 << (64 - num_bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
