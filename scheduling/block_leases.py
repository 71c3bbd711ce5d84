"""Who may write a block that one task lends to another, whatever the mechanism that lends.

A lender keeps the block in its table and is charged for it; a guest writes there while the lender's
head has not come so far. A guest may lend further. So a lent block has a chain of holders, the one
that is charged first and the one that may write last, and whoever ends leaves the chain: from its
end, and the block is its lender's to write again; from its beginning, and it is the next one's own.
`BlockPool` keeps the tables and asks here; nothing of this enters the ledger.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from scheduling.ids import BlockId, TaskId


class LeaseKind(StrEnum):
    """Which mechanism lent a block. Kinds never mix on one block."""

    # The middle of what a host has not written (EcoServe, KVC pipelining).
    PIPELINE = "pipeline"
    # The end of a host's allocation (CacheOPT, embedding).
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Lease:
    """One row of the record: `owner` may write the block, unless it lent it further."""

    block_id: BlockId
    owner: TaskId
    lender: TaskId
    kind: LeaseKind


@dataclass(frozen=True, slots=True)
class LentPlace:
    """Where a task that is to begin borrows room: blocks [first, first + num_blocks) of a table.

    They follow its own blocks. A router proposes it; the worker looks again when the task begins.
    """

    host_id: TaskId
    first: int
    num_blocks: int
    # Of the response, by prediction: what decides whether it ends before the host arrives.
    num_response_tokens: int
    kind: LeaseKind


@dataclass(frozen=True, slots=True)
class BlocksInherited:
    """A report: whoever lent these blocks to the task has left them, so it is charged for them."""

    task_id: TaskId
    num_blocks: int


@dataclass(slots=True)
class _Chain:
    kind: LeaseKind
    # At least two: each lent the block to the next.
    holders: list[TaskId]


class BlockLeases:
    """The lent blocks of one pool. Every question costs as much as the block's chain is long."""

    def __init__(self) -> None:
        self._chain_by_block: dict[BlockId, _Chain] = {}
        # A view, for those who ask often whether there are any.
        self.lent_blocks = self._chain_by_block.keys()
        # Of a task's table, the blocks that another is charged for, and those that another writes.
        self._num_borrowed: dict[TaskId, int] = {}
        self._num_lent: dict[TaskId, int] = {}

    def __len__(self) -> int:
        return len(self._chain_by_block)

    def __iter__(self) -> Iterator[Lease]:
        for block_id, chain in self._chain_by_block.items():
            for lender, owner in pairwise(chain.holders):
                yield Lease(block_id, owner, lender, chain.kind)

    def is_lent(self, block_id: BlockId) -> bool:
        """Somebody else than the one who is charged may write it."""
        return block_id in self._chain_by_block

    def may_write(self, block_id: BlockId, holder: TaskId) -> bool:
        """A holder of the block may write it: nobody else does before it is given back."""
        chain = self._chain_by_block.get(block_id)
        return chain is None or chain.holders[-1] == holder

    def is_compatible(
        self, block_id: BlockId, host: TaskId, guest: TaskId, kind: LeaseKind
    ) -> bool:
        """What is lent already leaves `host` free to lend it to `guest` as this kind."""
        chain = self._chain_by_block.get(block_id)
        if chain is None:
            return True
        return chain.kind is kind and chain.holders[-1] == host and guest not in chain.holders

    def heir_of(self, block_id: BlockId, holder: TaskId) -> TaskId | None:
        """Whose own the block becomes when `holder` leaves; None where it becomes nobody's."""
        chain = self._chain_by_block.get(block_id)
        return chain.holders[1] if chain is not None and chain.holders[0] == holder else None

    def lenders_of(self, block_id: BlockId, holder: TaskId) -> Sequence[TaskId]:
        """Those that lent the block to `holder`, directly or not."""
        chain = self._chain_by_block.get(block_id)
        return () if chain is None else chain.holders[: chain.holders.index(holder)]

    def num_borrowed_by(self, task_id: TaskId) -> int:
        """Blocks in its table that it is not charged for."""
        return self._num_borrowed.get(task_id, 0)

    def num_lent_by(self, task_id: TaskId) -> int:
        """Blocks in its table that it may not write."""
        return self._num_lent.get(task_id, 0)

    def lend(self, block_id: BlockId, host: TaskId, guest: TaskId, kind: LeaseKind) -> None:
        """Enter one lease, which must be compatible with what is lent already."""
        assert self.is_compatible(block_id, host, guest, kind)
        chain = self._chain_by_block.setdefault(block_id, _Chain(kind, [host]))
        chain.holders.append(guest)
        _count(self._num_borrowed, guest, 1)
        _count(self._num_lent, host, 1)

    def leave(self, block_id: BlockId, holder: TaskId) -> bool:
        """A holder lets go of the block; True where its lender may write it again."""
        chain = self._chain_by_block.get(block_id)
        if chain is None:
            return False
        holders = chain.holders
        was_first, was_writer = holders[0] == holder, holders[-1] == holder
        holders.remove(holder)
        _count(self._num_borrowed, holders[0] if was_first else holder, -1)
        _count(self._num_lent, holders[-1] if was_writer else holder, -1)
        if len(holders) == 1:
            del self._chain_by_block[block_id]
        return was_writer

    def check_invariants(self, holders_by_block: Mapping[BlockId, Sequence[TaskId]]) -> None:
        """Raise AssertionError unless chains name the holders of their blocks, and sums agree."""
        num_borrowed: dict[TaskId, int] = {}
        num_lent: dict[TaskId, int] = {}
        for block_id, chain in self._chain_by_block.items():
            assert len(chain.holders) > 1, "a block that nobody borrows is not lent"
            assert sorted(chain.holders) == sorted(holders_by_block[block_id])
        for lease in self:
            _count(num_borrowed, lease.owner, 1)
            _count(num_lent, lease.lender, 1)
        assert num_borrowed == self._num_borrowed
        assert num_lent == self._num_lent


def _count(number_by_task: dict[TaskId, int], task_id: TaskId, change: int) -> None:
    number = number_by_task.get(task_id, 0) + change
    if number:
        number_by_task[task_id] = number
    else:
        del number_by_task[task_id]
