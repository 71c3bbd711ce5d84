"""Counts one worker's KV blocks: who holds which, what is cached, how often each was handed out.

It stores no tensor (engine/kv_pool.py does). A block is free, or held by one task or several, or
cached: held by nobody, full, and kept under the hash of its content until the room is needed.
Several hold a block because they share its content, or because one lends it to another before it
writes there itself (scheduling/block_leases.py); never for both reasons.
Blocks are handed out in runs of neighbours where possible, so that a transfer is few large copies.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from scheduling.block_leases import BlockLeases, Lease, LeaseKind
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
        # Size of the pool.
        self.num_blocks: Final = num_blocks
        self._free = FreeRuns(num_blocks)
        # Cached blocks that nobody holds.
        self._evictable: EvictionOrder = eviction or LeastRecentlyUsed()
        self._blocks_by_owner: dict[TaskId, list[BlockId]] = {}
        # No lists: the collector would look at each of so many numbers.
        self._num_owners = array("I", [0]) * num_blocks
        self._generations = array("Q", [0]) * num_blocks
        self._hash_by_block: dict[BlockId, BlockHash] = {}
        self._block_by_hash: dict[BlockHash, BlockId] = {}
        # Held blocks whose content went wrong: not to be shared before they are handed out anew.
        self._distrusted: set[BlockId] = set()
        self._journal = PrefixJournal()
        self._leases = BlockLeases()
        self._lent_blocks = self._leases.lent_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds: what is cached there gives way."""
        num_free = self._free.num_free
        return num_free + len(self._evictable) if self._hash_by_block else num_free

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be shared, held or not."""
        return len(self._block_by_hash)

    @property
    def num_holds(self) -> int:
        """Blocks of all holders, each counted as often as it is held: for figures."""
        return sum(map(len, self._blocks_by_owner.values()))

    @property
    def num_lent_blocks(self) -> int:
        """Held blocks that another task than the one charged for them may write."""
        return len(self._lent_blocks)

    def allocate(
        self, owner: TaskId, num_blocks: int, shared: Sequence[BlockId] = ()
    ) -> tuple[BlockId, ...] | None:
        """Give `owner` the shared blocks, then as many new ones; return the new ones.

        None, and nothing has changed, when there is no room. Shared blocks are held or cached. A
        new block's generation is raised, so that whoever knew an earlier one is refused.
        """
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        num_revived = 0
        if shared:
            num_revived = sum(1 for block_id in shared if not self._num_owners[block_id])
        if num_blocks > self.num_free_blocks - num_revived:
            return None
        for block_id in shared:
            assert not self._leases.is_lent(block_id), "its lender will write over what it holds"
            self._evictable.touch(block_id)
            if not self._num_owners[block_id]:
                assert block_id in self._hash_by_block, "a free block has nothing to share"
                self._evictable.discard(block_id)
            self._num_owners[block_id] += 1
        taken = self._take(num_blocks)
        self._blocks_by_owner.setdefault(owner, []).extend([*shared, *taken])
        return tuple(taken)

    def lend(
        self, host: TaskId, guest: TaskId, first: int, num_blocks: int, kind: LeaseKind
    ) -> tuple[BlockId, ...] | None:
        """Blocks of `host`'s table, from its position `first`, are `guest`'s to write from now on.

        They follow what the guest's table has; return them. None, and nothing has changed, where
        one of them is not there, not the host's to write, shared, or lent as another kind. That
        the host has written none of them, and that nobody is writing into them for it, is the
        caller's promise. Each gets a new generation, so that whoever knew an earlier is refused.
        """
        blocks = self._blocks_by_owner.get(host, [])[first : first + num_blocks]
        if host == guest or first < 0 or len(blocks) != num_blocks:
            return None
        if not all(self._is_lendable(block_id, host, guest, kind) for block_id in blocks):
            return None
        for block_id in blocks:
            self._leases.lend(block_id, host, guest, kind)
            self._num_owners[block_id] += 1
            self._hand_out(block_id)
        self._blocks_by_owner.setdefault(guest, []).extend(blocks)
        return tuple(blocks)

    def replace_lent(self, host: TaskId, position: int) -> BlockId | None:
        """`host` wants to write where its guest still lives: it gets a new block there instead.

        Return the new one, which the host is charged for; None, and nothing has changed, where
        there is no room. The lent block stays with the guest: as its own, or as a lease from
        whoever lent it to the host.
        """
        table = self._blocks_by_owner[host]
        lent = table[position]
        assert not self._leases.may_write(lent, host), "only what it lent needs to be replaced"
        if not self.num_free_blocks:
            return None
        (table[position],) = self._take(1)
        self._leases.leave(lent, host)
        self._num_owners[lent] -= 1
        return table[position]

    def release(self, owner: TaskId) -> int:
        """`owner` lets go of all its blocks; return how many. Releasing twice is harmless.

        What it had borrowed is its lender's to write again; what it had lent is its guest's own,
        or borrowed from whoever lent it to `owner`.
        """
        blocks = self._blocks_by_owner.pop(owner, [])
        freed: list[BlockId] = []
        num_owners, hash_by_block = self._num_owners, self._hash_by_block
        is_any_lent = len(self._lent_blocks) > 0
        # The end of a chain is worth nothing without its beginning: it is to be evicted first.
        for block_id in reversed(blocks):
            if is_any_lent and self._leases.leave(block_id, owner):
                self._hand_out(block_id)
            num_others = num_owners[block_id] - 1
            num_owners[block_id] = num_others
            if num_others:
                continue
            if block_id in hash_by_block:
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

        Where another block has this content already, that one stays the one to share. A lent block
        is never shared: its lender will write over what it holds.
        """
        assert self._num_owners[block_id], "only its holder can know what a block holds"
        if block_hash in self._block_by_hash or block_id in self._distrusted:
            return
        if self._leases.is_lent(block_id):
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
        """How many blocks `owner` holds, lent ones included."""
        return len(self._blocks_by_owner.get(owner, ()))

    def num_blocks_alone(self, owner: TaskId) -> int:
        """Blocks that nobody else holds: what is free, be it cached, once `owner` lets go."""
        held = self._blocks_by_owner.get(owner, ())
        return sum(1 for block_id in held if self._num_owners[block_id] == 1)

    def num_charged_blocks_of(self, owner: TaskId) -> int:
        """Blocks that `owner` holds and has not borrowed: what the ledger is to book for it."""
        return self.num_blocks_of(owner) - self._leases.num_borrowed_by(owner)

    def may_write(self, owner: TaskId, position: int) -> bool:
        """The block at this position of its table is not lent to somebody who still lives."""
        return self._leases.may_write(self._blocks_by_owner[owner][position], owner)

    def lent_positions_of(self, owner: TaskId) -> tuple[int, ...]:
        """Where in its table others write, ascending."""
        if not self._leases.num_lent_by(owner):
            return ()
        table = enumerate(self._blocks_by_owner[owner])
        return tuple(i for i, block_id in table if not self._leases.may_write(block_id, owner))

    def lender_positions_of(self, owner: TaskId) -> dict[TaskId, int]:
        """Who lent to `owner`, directly or not, and where in the lender's table that begins."""
        if not self._leases.num_borrowed_by(owner):
            return {}
        lenders: dict[TaskId, int] = {}
        for block_id in self._blocks_by_owner[owner]:
            for lender in self._leases.lenders_of(block_id, owner):
                position = self._blocks_by_owner[lender].index(block_id)
                lenders[lender] = min(position, lenders.get(lender, position))
        return lenders

    def num_inherited_from(self, owner: TaskId) -> dict[TaskId, int]:
        """How many blocks more each guest will be charged for when `owner` is released."""
        num_blocks: dict[TaskId, int] = {}
        for block_id in self.blocks_of(owner) if self._leases.num_lent_by(owner) else ():
            heir = self._leases.heir_of(block_id, owner)
            if heir is not None:
                num_blocks[heir] = num_blocks.get(heir, 0) + 1
        return num_blocks

    def heir_at(self, owner: TaskId, position: int) -> TaskId | None:
        """Who will be charged for that block of its table once `owner` leaves it; None: nobody."""
        return self._leases.heir_of(self._blocks_by_owner[owner][position], owner)

    def is_lent(self, block_id: BlockId) -> bool:
        """It must not be shared, nor may it be waited for: its lender will write over it."""
        return self._leases.is_lent(block_id)

    def leases(self) -> Iterator[Lease]:
        """The record: who borrowed which block from whom."""
        return iter(self._leases)

    def generations_of(self, block_ids: Sequence[BlockId]) -> tuple[Generation, ...]:
        """The current tag of each block, from 1 on."""
        return tuple(Generation(self._generations[block_id]) for block_id in block_ids)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every block is free, cached, or counted for its holders.

        Of several holders, either one may write, or none because the content is shared.
        """
        self._free.check_invariants()
        free = set(self._free)
        holders: dict[BlockId, list[TaskId]] = {}
        for owner, blocks in self._blocks_by_owner.items():
            assert len(set(blocks)) == len(blocks), "a task holds a block once"
            for block_id in blocks:
                holders.setdefault(block_id, []).append(owner)
        num_owners = [len(holders.get(BlockId(i), ())) for i in range(self.num_blocks)]
        assert num_owners == self._num_owners.tolist()
        self._leases.check_invariants(holders)
        assert not any(map(self._leases.is_lent, self._hash_by_block)), "lent and shared"
        unheld = {block_id for block_id, number in enumerate(num_owners) if not number}
        cached = unheld & self._hash_by_block.keys()
        assert free == unheld - cached
        assert len(self._evictable) == len(cached)
        assert {h: b for b, h in self._hash_by_block.items()} == self._block_by_hash

    def _is_lendable(self, block_id: BlockId, host: TaskId, guest: TaskId, kind: LeaseKind) -> bool:
        is_shared = self._num_owners[block_id] > 1 and not self._leases.is_lent(block_id)
        if is_shared or block_id in self._hash_by_block:
            return False
        return self._leases.is_compatible(block_id, host, guest, kind)

    def _take(self, num_blocks: int) -> list[BlockId]:
        """New blocks for one holder; there are so many that nobody holds."""
        num_evicted = num_blocks - self._free.num_free
        if num_evicted > 0:
            taken = sorted(self._free.take(num_blocks - num_evicted) + self._evict(num_evicted))
        else:
            taken = sorted(self._free.take(num_blocks))
        if self._distrusted:
            self._distrusted.difference_update(taken)
        generations, num_owners = self._generations, self._num_owners
        for block_id in taken:
            # As of one that is handed out: what was known of it holds no more.
            generations[block_id] += 1
            num_owners[block_id] = 1
        return taken

    def _hand_out(self, block_id: BlockId) -> None:
        """Somebody begins to write it anew: what was known of it holds no more."""
        self._generations[block_id] += 1
        self._distrusted.discard(block_id)

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
