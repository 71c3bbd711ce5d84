"""Counts one worker's KV blocks: who holds which, what is cached, how often each was handed out.

It stores no tensor (engine/kv_pool.py does). A block is free, or held by one task or several, or
cached: held by nobody, full, and kept under the hash of its content until the room is needed.
Blocks are handed out in runs of neighbours where possible, so that a transfer is few large copies.
"""

from collections.abc import Sequence

from scheduling.free_runs import FreeRuns, runs_of
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.prefix_chain import BlockHash, prefix_key
from scheduling.prefix_eviction import EvictionOrder, LeastRecentlyUsed
from scheduling.prefix_index import PrefixChanges, PrefixJournal

__all__ = ["BlockPool", "num_blocks_for", "runs_of"]


class BlockPool:
    """The worker is the authority on its own blocks; the ledger only promises counts of them."""

    def __init__(self, num_blocks: int, eviction: EvictionOrder | None = None) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, got {num_blocks}")
        self._num_blocks = num_blocks
        self._free = FreeRuns(num_blocks)
        # Cached blocks that nobody holds.
        self._evictable: EvictionOrder = eviction or LeastRecentlyUsed()
        self._blocks_by_owner: dict[TaskId, list[BlockId]] = {}
        self._num_owners = [0] * num_blocks
        self._generations = [0] * num_blocks
        self._hash_by_block: dict[BlockId, BlockHash] = {}
        self._block_by_hash: dict[BlockHash, BlockId] = {}
        # Held blocks whose content went wrong: not to be shared before they are handed out anew.
        self._distrusted: set[BlockId] = set()
        self._journal = PrefixJournal()

    @property
    def num_blocks(self) -> int:
        """Size of the pool."""
        return self._num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds: what is cached there gives way."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be shared, held or not."""
        return len(self._block_by_hash)

    def allocate(
        self, owner: TaskId, num_blocks: int, shared: Sequence[BlockId] = ()
    ) -> tuple[BlockId, ...] | None:
        """Give `owner` the shared blocks, then as many new ones; return the new ones.

        None, and nothing has changed, when there is no room. Shared blocks are held or cached. A
        new block's generation is raised, so that whoever knew an earlier one is refused.
        """
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        num_revived = sum(1 for block_id in shared if not self._num_owners[block_id])
        if num_blocks > self.num_free_blocks - num_revived:
            return None
        for block_id in shared:
            self._evictable.touch(block_id)
            if not self._num_owners[block_id]:
                assert block_id in self._hash_by_block, "a free block has nothing to share"
                self._evictable.discard(block_id)
            self._num_owners[block_id] += 1
        num_evicted = max(0, num_blocks - len(self._free))
        taken = sorted(self._free.take(num_blocks - num_evicted) + self._evict(num_evicted))
        for block_id in taken:
            self._generations[block_id] += 1
            self._num_owners[block_id] = 1
            self._distrusted.discard(block_id)
        self._blocks_by_owner.setdefault(owner, []).extend([*shared, *taken])
        return tuple(taken)

    def release(self, owner: TaskId) -> int:
        """`owner` lets go of all its blocks; return how many. Releasing twice is harmless."""
        blocks = self._blocks_by_owner.pop(owner, [])
        freed: list[BlockId] = []
        # The end of a chain is worth nothing without its beginning: it is to be evicted first.
        for block_id in reversed(blocks):
            self._num_owners[block_id] -= 1
            if self._num_owners[block_id]:
                continue
            if block_id in self._hash_by_block:
                self._evictable.add(block_id)
            else:
                freed.append(block_id)
        self._free.give(freed)
        return len(blocks)

    def longest_prefix(self, chain: Sequence[BlockHash]) -> tuple[BlockId, ...]:
        """The blocks of the longest beginning of the chain that is here."""
        found: list[BlockId] = []
        for block_hash in chain:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return tuple(found)

    def register(self, block_id: BlockId, block_hash: BlockHash) -> None:
        """A held block is full and its content final: others may share it from now on.

        Where another block has this content already, that one stays the one to share.
        """
        assert self._num_owners[block_id], "only its holder can know what a block holds"
        if block_hash in self._block_by_hash or block_id in self._distrusted:
            return
        assert block_id not in self._hash_by_block, "a block has one content"
        self._block_by_hash[block_hash] = block_id
        self._hash_by_block[block_id] = block_hash
        self._journal.note(prefix_key(block_hash), True)

    def is_shareable(self, block_id: BlockId) -> bool:
        """Its content is known to be complete."""
        return block_id in self._hash_by_block

    def distrust(self, owner: TaskId) -> None:
        """Share the blocks of `owner` no more: what was computed from them went wrong."""
        for block_id in self._blocks_by_owner.get(owner, ()):
            self._forget(block_id)
            self._distrusted.add(block_id)

    def forget(self, chain: Sequence[BlockHash]) -> None:
        """Share these contents no more, whoever holds them."""
        for block_hash in chain:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                continue
            self._forget(block_id)
            if not self._num_owners[block_id]:
                self._evictable.discard(block_id)
                self._free.give([block_id])

    def take_prefix_changes(self) -> PrefixChanges | None:
        """What became shareable, or ceased to be, since the last call; None where nothing did."""
        return self._journal.take() if self._journal else None

    def blocks_of(self, owner: TaskId) -> tuple[BlockId, ...]:
        """Blocks of `owner`: in the order of its allocations, the shared ones of each first."""
        return tuple(self._blocks_by_owner.get(owner, ()))

    def num_blocks_of(self, owner: TaskId) -> int:
        """How many blocks `owner` holds."""
        return len(self._blocks_by_owner.get(owner, ()))

    def generations_of(self, block_ids: Sequence[BlockId]) -> tuple[Generation, ...]:
        """The current tag of each block, from 1 on."""
        return tuple(Generation(self._generations[block_id]) for block_id in block_ids)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every block is free, cached, or counted for its holders."""
        self._free.check_invariants()
        free = set(self._free)
        num_owners = [0] * self._num_blocks
        for blocks in self._blocks_by_owner.values():
            assert len(set(blocks)) == len(blocks), "a task holds a block once"
            for block_id in blocks:
                num_owners[block_id] += 1
        assert num_owners == self._num_owners
        unheld = {block_id for block_id, number in enumerate(num_owners) if not number}
        cached = unheld & self._hash_by_block.keys()
        assert free == unheld - cached
        assert len(self._evictable) == len(cached)
        assert {h: b for b, h in self._hash_by_block.items()} == self._block_by_hash

    def _evict(self, num_blocks: int) -> list[BlockId]:
        evicted = [self._evictable.pick() for _ in range(num_blocks)]
        for block_id in evicted:
            self._forget(block_id)
        return evicted

    def _forget(self, block_id: BlockId) -> None:
        block_hash = self._hash_by_block.pop(block_id, None)
        if block_hash is not None:
            del self._block_by_hash[block_hash]
            self._journal.note(prefix_key(block_hash), False)


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold the KV of so many tokens."""
    return -(-num_tokens // block_size)
