"""The checksum of a block, and of the name of a sender: one function for every transport."""

import numpy as np
import numpy.typing as npt
import xxhash


def block_checksum(block: npt.NDArray[np.uint8]) -> int:
    """64 bits over a block's bytes; finds damage, does not resist an attacker."""
    return xxhash.xxh3_64_intdigest(block.data)


def sender_key(sender_id: str) -> int:
    """A sender's name as one nonzero word."""
    return xxhash.xxh3_64_intdigest(sender_id.encode()) or 1
