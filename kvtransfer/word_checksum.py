"""The checksum of blocks in device memory: a sum over mixed words, so that any order gives it.

A GPU adds up in no fixed order; sums of integers modulo 2**64 do not care. Each word is mixed with
its position, so words that change places are noticed. The same arithmetic on signed words, as
torch has them, is in `cuda_checksum.py`. Finds damage, does not resist an attacker.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

WORD_BYTES: Final = 8
# Odd: 2**64 over the golden ratio, and a multiplier of splitmix64.
STEP: Final = 0x9E3779B97F4A7C15
FACTOR: Final = 0xBF58476D1CE4E5B9
FIRST_SHIFT: Final = 32
SECOND_SHIFT: Final = 29


def word_checksum(block: npt.NDArray[np.uint8]) -> int:
    """64 bits over a block's bytes; its length is a multiple of 8 bytes."""
    words = np.ascontiguousarray(block).view(np.uint64)
    mixed = np.arange(1, len(words) + 1, dtype=np.uint64)
    mixed *= np.uint64(STEP)
    mixed += words
    mixed ^= mixed >> np.uint64(FIRST_SHIFT)
    mixed *= np.uint64(FACTOR)
    mixed ^= mixed >> np.uint64(SECOND_SHIFT)
    return int(np.add.reduce(mixed, dtype=np.uint64))
