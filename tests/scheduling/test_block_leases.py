"""Lent blocks: whatever happens in whatever order, nobody writes over what a live task wrote."""

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduling.block_leases import Lease, LeaseKind
from scheduling.block_pool import BlockPool
from scheduling.ids import BlockId, TaskId
from scheduling.prefix_chain import chain_root, extend_chain

PIPELINE, EMBEDDING = LeaseKind.PIPELINE, LeaseKind.EMBEDDING
HOST, GUEST, INNER = TaskId("host"), TaskId("guest"), TaskId("inner")
NUM_BLOCKS = 12
tasks = st.sampled_from([TaskId(name) for name in "abcde"])


# PAPERS 1.4.1 (no block has two live owners), 1.4.3 (overrun, collision, preemption), 2.4.2.
class LendingPool(RuleBasedStateMachine):
    """Tasks write blocks in the order of their tables; `content` is the memory.

    A block here has one token, so a write is a whole block. The model is naive: of each block the
    list of those who hold it, the last one being who may write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.tables: dict[TaskId, list[BlockId]] = {}
        self.num_written: dict[TaskId, int] = {}
        self.holders: dict[BlockId, list[TaskId]] = {}
        self.kinds: dict[BlockId, LeaseKind] = {}
        self.content: dict[BlockId, tuple[TaskId, int]] = {}
        self.generations = [0] * NUM_BLOCKS

    @rule(task=tasks, num_blocks=st.integers(0, 8))
    def allocate(self, task: TaskId, num_blocks: int) -> None:
        taken = self.pool.allocate(task, num_blocks)
        assert (taken is None) == (num_blocks > self.num_free())
        if taken is not None:
            self.handed_out(taken)
            self.holders |= {block_id: [task] for block_id in taken}
            self.tables.setdefault(task, []).extend(taken)
            self.num_written.setdefault(task, 0)

    @rule(host=tasks, guest=tasks, kind=st.sampled_from(LeaseKind), data=st.data())
    def lend(self, host: TaskId, guest: TaskId, kind: LeaseKind, data: st.DataObject) -> None:
        first = data.draw(st.integers(self.num_written.get(host, 0), NUM_BLOCKS), "first")
        num_blocks = data.draw(st.integers(1, 4), "num_blocks")
        table = self.tables.get(host, [])
        wanted = table[first : first + num_blocks]
        may_lend = (
            host != guest
            and len(wanted) == num_blocks
            and all(self.holders[b][-1] == host for b in wanted)
            and all(guest not in self.holders[b] for b in wanted)
            and all(len(self.holders[b]) == 1 or self.kinds[b] is kind for b in wanted)
        )
        lent = self.pool.lend(host, guest, first, num_blocks, kind)
        assert lent == (tuple(wanted) if may_lend else None)
        if lent is not None:
            self.handed_out(lent)
            for block_id in lent:
                self.holders[block_id].append(guest)
                self.kinds[block_id] = kind
            self.tables.setdefault(guest, []).extend(lent)
            self.num_written.setdefault(guest, 0)

    @rule(task=tasks)
    def append(self, task: TaskId) -> None:
        position = self.num_written.get(task)
        if position is None:
            return
        if position == len(self.tables[task]):
            self.allocate(task, 1)  # it runs over its prediction
        if position == len(self.tables[task]):
            return
        block_id = self.tables[task][position]
        assert self.pool.may_write(task, position) == (self.holders[block_id][-1] == task)
        if self.holders[block_id][-1] != task and not self.replace(task, position):
            return
        self.content[self.tables[task][position]] = (task, position)
        self.num_written[task] += 1

    def replace(self, host: TaskId, position: int) -> bool:
        num_free = self.num_free()
        taken = self.pool.replace_lent(host, position)
        assert (taken is None) == (num_free == 0)
        if taken is None:
            return False
        self.holders[self.tables[host][position]].remove(host)
        self.handed_out((taken,))
        self.holders[taken] = [host]
        self.tables[host][position] = taken
        return True

    @rule(task=tasks)
    def share(self, task: TaskId) -> None:
        """It is full and named: a lent block does not become shareable by that."""
        written = self.num_written.get(task, 0)
        if not written or written > len(self.tables[task]):
            return
        block_id = self.tables[task][written - 1]
        if self.pool.is_shareable(block_id):
            return
        (content,) = extend_chain(chain_root(f"{task}{written}"), [0], 1)
        known = bool(self.pool.longest_prefix([content]))
        self.pool.register(block_id, content)
        may_share = len(self.holders[block_id]) == 1 and not known
        assert self.pool.is_shareable(block_id) == may_share

    @rule(task=tasks)
    def end(self, task: TaskId) -> None:
        inherited = self.pool.num_inherited_from(task)
        charged = {other: self.pool.num_charged_blocks_of(other) for other in self.tables}
        table = self.tables.pop(task, [])
        assert self.pool.release(task) == len(table)
        assert self.pool.release(task) == 0
        self.num_written.pop(task, None)
        for block_id in table:
            was_writer = self.holders[block_id][-1] == task
            self.holders[block_id].remove(task)
            if not self.holders[block_id]:
                del self.holders[block_id]
            elif was_writer:
                self.handed_out((block_id,))
        for other in self.tables:
            now = self.pool.num_charged_blocks_of(other)
            assert now - charged[other] == inherited.get(other, 0)

    @invariant()
    def what_live_tasks_wrote_is_there(self) -> None:
        for task, table in self.tables.items():
            for position in range(self.num_written[task]):
                assert self.content[table[position]] == (task, position)

    @invariant()
    def every_block_has_one_writer_and_one_that_is_charged(self) -> None:
        self.pool.check_invariants()
        assert self.pool.num_free_blocks == self.num_free()
        assert self.pool.num_lent_blocks == sum(len(h) > 1 for h in self.holders.values())
        charged = map(self.pool.num_charged_blocks_of, self.tables)
        assert sum(charged) == len(self.holders)
        for task, table in self.tables.items():
            assert list(self.pool.blocks_of(task)) == table
            lent = [i for i, b in enumerate(table) if self.holders[b][-1] != task]
            assert list(self.pool.lent_positions_of(task)) == lent
        assert set(self.pool.leases()) == {
            Lease(block_id, owner, lender, self.kinds[block_id])
            for block_id, holders in self.holders.items()
            for lender, owner in pairwise(holders)
        }

    def num_free(self) -> int:
        return NUM_BLOCKS - len(self.holders)

    def handed_out(self, block_ids: tuple[BlockId, ...]) -> None:
        for block_id in block_ids:
            (generation,) = self.pool.generations_of([block_id])
            assert generation > self.generations[block_id], "an earlier writer is not refused"
            self.generations[block_id] = generation


TestLendingPool = LendingPool.TestCase


def pool_with_host(num_blocks: int = 8) -> BlockPool:
    """A host with all blocks of a pool, and a guest and another that have none."""
    pool = BlockPool(num_blocks)
    assert pool.allocate(HOST, num_blocks) is not None
    return pool


def test_a_lease_is_no_new_kvc() -> None:
    pool = pool_with_host()
    assert pool.lend(HOST, GUEST, 4, 4, PIPELINE) == (4, 5, 6, 7)
    assert pool.blocks_of(GUEST) == (4, 5, 6, 7)
    assert (pool.num_charged_blocks_of(HOST), pool.num_charged_blocks_of(GUEST)) == (8, 0)
    assert (pool.num_free_blocks, pool.num_lent_blocks) == (0, 4)


def test_a_guest_gets_what_it_borrows_after_its_own_blocks() -> None:
    pool = BlockPool(8)
    pool.allocate(HOST, 5)
    pool.allocate(GUEST, 2)
    pool.lend(HOST, GUEST, 3, 2, PIPELINE)
    assert pool.blocks_of(GUEST) == (5, 6, 3, 4)


def test_what_a_guest_borrowed_goes_back_to_its_lender_when_it_ends() -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    assert not pool.may_write(HOST, 4)
    pool.release(GUEST)
    assert pool.may_write(HOST, 4)
    assert pool.num_free_blocks == 0
    # The region may be lent again, as whatever kind.
    assert pool.lend(HOST, GUEST, 4, 4, EMBEDDING) is not None


def test_what_a_host_lent_is_its_guests_own_when_it_ends_first() -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    assert pool.num_inherited_from(HOST) == {GUEST: 4}
    pool.release(HOST)
    assert (pool.num_charged_blocks_of(GUEST), pool.num_free_blocks) == (4, 4)
    assert not list(pool.leases())
    pool.release(GUEST)
    assert pool.num_free_blocks == 8


def test_what_a_guest_lent_on_is_borrowed_from_its_host_when_it_ends_first() -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    assert pool.lend(GUEST, INNER, 2, 2, PIPELINE) == (6, 7)
    assert pool.lender_positions_of(INNER) == {HOST: 6, GUEST: 2}
    pool.release(GUEST)
    assert set(pool.leases()) == {Lease(BlockId(b), INNER, HOST, PIPELINE) for b in (6, 7)}
    assert pool.lent_positions_of(HOST) == (6, 7)


def test_a_host_that_meets_its_guest_gets_another_block_there() -> None:
    pool = BlockPool(9)
    pool.allocate(HOST, 8)
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    assert pool.replace_lent(HOST, 4) == 8
    assert pool.blocks_of(HOST) == (0, 1, 2, 3, 8, 5, 6, 7)
    assert pool.may_write(HOST, 4)
    assert (pool.num_charged_blocks_of(HOST), pool.num_charged_blocks_of(GUEST)) == (8, 1)
    # There is no other block left: the guest has to go, or the host to wait.
    assert pool.replace_lent(HOST, 5) is None
    assert pool.blocks_of(HOST) == (0, 1, 2, 3, 8, 5, 6, 7)


def test_a_guest_that_meets_its_own_guest_leaves_the_block_to_the_host_of_both() -> None:
    pool = BlockPool(9)
    pool.allocate(HOST, 8)
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    pool.lend(GUEST, INNER, 2, 2, PIPELINE)
    assert pool.replace_lent(GUEST, 2) == 8
    assert Lease(BlockId(6), INNER, HOST, PIPELINE) in set(pool.leases())
    assert pool.num_charged_blocks_of(INNER) == 0


@pytest.mark.parametrize("kind", LeaseKind)
def test_kinds_do_not_mix_on_one_block(kind: LeaseKind) -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    assert (pool.lend(GUEST, INNER, 2, 2, kind) is not None) == (kind is PIPELINE)
    # Side by side they are fine.
    assert pool.lend(HOST, INNER, 2, 2, kind) is not None


def test_a_block_is_lent_to_one_at_a_time_and_never_back() -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 4, 4, PIPELINE)
    assert pool.lend(HOST, INNER, 7, 1, PIPELINE) is None
    assert pool.lend(GUEST, HOST, 0, 1, PIPELINE) is None
    assert pool.lend(HOST, HOST, 0, 1, PIPELINE) is None
    assert pool.lend(HOST, INNER, 3, 2, PIPELINE) is None, "half of it is lent"
    assert not pool.num_blocks_of(INNER)


def test_what_others_share_or_wait_for_is_not_lent() -> None:
    pool = pool_with_host()
    (content,) = extend_chain(chain_root(), range(4), 4)
    pool.register(BlockId(0), content)
    pool.allocate(INNER, 0, shared=(BlockId(0), BlockId(1)))
    for position in (0, 1):
        assert pool.lend(HOST, GUEST, position, 1, PIPELINE) is None
    pool.release(INNER)
    assert pool.lend(HOST, GUEST, 0, 1, PIPELINE) is None, "a later task may come to share it"
    assert pool.lend(HOST, GUEST, 1, 1, PIPELINE) is not None


def test_a_lent_block_is_not_shared_before_it_is_somebodys_own() -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 7, 1, PIPELINE)
    (content,) = extend_chain(chain_root(), range(4), 4)
    pool.register(BlockId(7), content)
    assert pool.longest_prefix((content,)) == ()
    pool.release(HOST)
    pool.register(BlockId(7), content)
    assert pool.longest_prefix((content,)) == (7,)


def test_the_end_of_a_guest_that_went_wrong_leaves_its_lender_a_block_to_trust() -> None:
    pool = pool_with_host()
    pool.lend(HOST, GUEST, 7, 1, PIPELINE)
    pool.distrust(GUEST)
    pool.release(GUEST)
    (content,) = extend_chain(chain_root(), range(4), 4)
    pool.register(BlockId(7), content)
    assert pool.longest_prefix((content,)) == (7,)
