"""Names full KV blocks by their content: a block and everything before it, hashed as a chain.

Two blocks of equal hash hold the KV of the same tokens at the same positions, so one can stand for
the other. A worker serves one model with one arithmetic, so these need not be part of the hash.
"""

import sys
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NewType, cast

# Of the tokens from the first one up to the end of a full block: 16 bytes.
BlockHash = NewType("BlockHash", bytes)
# The first 8 bytes of a BlockHash, as workers tell them to routers: enough for a hint.
PrefixKey = NewType("PrefixKey", int)

_DIGEST_BYTES = 16
_TOKEN_BYTES = 4


def chain_root(cache_salt: str = "") -> BlockHash:
    """What the first block follows. Requests of different salts never share a block."""
    return BlockHash(blake2b(cache_salt.encode(), digest_size=_DIGEST_BYTES).digest())


def extend_chain(
    parent: BlockHash, token_ids: Sequence[int], block_size: int
) -> tuple[BlockHash, ...]:
    """Hashes of the full blocks of these tokens, which follow the block of hash `parent`.

    Tokens behind the last full block are left out. Token ids are below 2**32.
    """
    num_tokens = len(token_ids) // block_size * block_size
    words = array("I", token_ids[:num_tokens])
    assert words.itemsize == _TOKEN_BYTES
    content = _little_endian(words).tobytes()
    step = _TOKEN_BYTES * block_size
    digest: bytes = parent
    chain: list[bytes] = []
    # A router does this for every block of every prompt.
    for start in range(0, len(content), step):
        digest = blake2b(digest + content[start : start + step], digest_size=_DIGEST_BYTES).digest()
        chain.append(digest)
    return cast("tuple[BlockHash, ...]", tuple(chain))


def prefix_key(block_hash: BlockHash) -> PrefixKey:
    """The short name of a block."""
    return PrefixKey(int.from_bytes(block_hash[:8], "little"))


def _prefix_keys(chain: Sequence[BlockHash]) -> tuple[PrefixKey, ...]:
    """The short names of all of them: every other of their words of eight bytes."""
    words = _little_endian(array("Q", b"".join(chain)))
    return cast("tuple[PrefixKey, ...]", tuple(words[::2]))


def _little_endian(words: "array[int]") -> "array[int]":
    """Whatever the machine: routers and workers compare what is made of them."""
    if sys.byteorder == "big":
        words.byteswap()
    return words


class PromptPrefix:
    """The keys of one prompt's full blocks, computed once for each block size that is asked for."""

    __slots__ = ("_cache_salt", "_keys_by_block_size", "_token_ids")

    def __init__(
        self,
        token_ids: tuple[int, ...],
        cache_salt: str = "",
        known_keys: Mapping[int, tuple[PrefixKey, ...]] | None = None,
    ) -> None:
        """`known_keys`: by block size, where somebody else computed them."""
        self._token_ids = token_ids
        self._cache_salt = cache_salt
        self._keys_by_block_size = dict(known_keys or {})

    @property
    def made_from(self) -> tuple[tuple[int, ...], str]:
        """Tokens and salt."""
        return self._token_ids, self._cache_salt

    @property
    def known_keys(self) -> dict[int, tuple[PrefixKey, ...]]:
        """By block size, those that somebody has asked for."""
        return dict(self._keys_by_block_size)

    def keys(self, block_size: int) -> tuple[PrefixKey, ...]:
        """One key for each full block, in the order of the tokens."""
        known = self._keys_by_block_size.get(block_size)
        if known is None:
            chain = extend_chain(chain_root(self._cache_salt), self._token_ids, block_size)
            known = self._keys_by_block_size[block_size] = _prefix_keys(chain)
        return known
