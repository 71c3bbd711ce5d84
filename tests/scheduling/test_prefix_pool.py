"""Blocks that are shared and cached: none is lost, and none holds what it must not."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduling.block_pool import BlockPool
from scheduling.ids import BlockId, TaskId
from scheduling.prefix_chain import BlockHash, chain_root, extend_chain, prefix_key
from scheduling.prefix_index import PrefixIndex

NUM_BLOCKS = 12
# Prompts of up to 5 blocks of one token, over an alphabet of two: they share a lot.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)
owners = st.sampled_from([TaskId(name) for name in "abcd"])


def chain_of(prompt: tuple[int, ...]) -> tuple[BlockHash, ...]:
    return extend_chain(chain_root(), prompt, 1)


class SharedPool(RuleBasedStateMachine):
    """What a worker does with prompts; `content` is the memory, which the pool never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.prompt_by_owner: dict[TaskId, tuple[int, ...]] = {}
        self.num_written: dict[TaskId, int] = {}
        self.content: dict[BlockId, tuple[int, ...]] = {}
        self.seen_grants: set[tuple[int, int]] = set()
        self.told = PrefixIndex(NUM_BLOCKS)

    @rule(owner=owners, prompt=prompts)
    def start(self, owner: TaskId, prompt: tuple[int, ...]) -> None:
        if owner in self.prompt_by_owner:
            return
        shared = self.pool.longest_prefix(chain_of(prompt)[:-1])
        before = self.pool.num_free_blocks
        num_revived = sum(not self.is_held(block_id) for block_id in shared)
        taken = self.pool.allocate(owner, len(prompt) - len(shared), shared)
        assert (taken is None) == (len(prompt) - len(shared) + num_revived > before)
        if taken is None:
            assert self.pool.num_free_blocks == before
            return
        for length, block_id in enumerate(shared, 1):
            assert self.content[block_id] == prompt[:length], "shared, and not what was asked for"
        assert not any(self.is_held(block_id) for block_id in taken)
        grants = set(zip(taken, self.pool.generations_of(taken), strict=True))
        assert not grants & self.seen_grants
        self.seen_grants |= grants
        for block_id in taken:
            self.content.pop(block_id, None)
        self.prompt_by_owner[owner] = prompt
        self.num_written[owner] = len(shared)

    @rule(owner=owners)
    def compute(self, owner: TaskId) -> None:
        prompt = self.prompt_by_owner.get(owner, ())
        written = self.num_written.get(owner, 0)
        if written == len(prompt):
            return
        block_id = self.pool.blocks_of(owner)[written]
        self.content[block_id] = prompt[: written + 1]
        self.pool.register(block_id, chain_of(prompt)[written])
        self.num_written[owner] = written + 1

    @rule(owner=owners)
    def end(self, owner: TaskId) -> None:
        prompt = self.prompt_by_owner.pop(owner, ())
        assert self.pool.release(owner) == len(prompt)
        self.num_written.pop(owner, None)

    @rule(owner=owners)
    def distrust(self, owner: TaskId) -> None:
        blocks = self.pool.blocks_of(owner)
        self.pool.distrust(owner)
        assert not any(self.pool.is_shareable(block_id) for block_id in blocks)

    @rule()
    def tell(self) -> None:
        changes = self.pool.take_prefix_changes()
        if changes is not None:
            self.told.apply(changes)
        assert self.pool.take_prefix_changes() is None
        assert len(self.told) == self.pool.num_cached_blocks

    @invariant()
    def nothing_is_lost_or_overwritten(self) -> None:
        self.pool.check_invariants()
        for owner, prompt in self.prompt_by_owner.items():
            for length, block_id in enumerate(
                self.pool.blocks_of(owner)[: self.num_written[owner]]
            ):
                assert self.content[block_id] == prompt[: length + 1]
        if not self.prompt_by_owner:
            assert self.pool.num_free_blocks == NUM_BLOCKS

    def is_held(self, block_id: BlockId) -> bool:
        return any(block_id in self.pool.blocks_of(owner) for owner in self.prompt_by_owner)


TestSharedPool = SharedPool.TestCase


def fill(pool: BlockPool, name: str, prompt: tuple[int, ...]) -> tuple[BlockId, ...]:
    blocks = pool.allocate(TaskId(name), len(prompt))
    assert blocks is not None
    for block_id, block_hash in zip(blocks, chain_of(prompt), strict=True):
        pool.register(block_id, block_hash)
    return blocks


def test_what_is_cached_counts_as_free_and_gives_way_the_end_of_the_oldest_chain_first() -> None:
    pool = BlockPool(6)
    fill(pool, "old", (1, 2, 3))
    fill(pool, "new", (4, 5, 6))
    pool.release(TaskId("old"))
    pool.release(TaskId("new"))
    assert (pool.num_free_blocks, pool.num_cached_blocks) == (6, 6)
    pool.allocate(TaskId("x"), 2)
    assert len(pool.longest_prefix(chain_of((1, 2, 3)))) == 1
    assert len(pool.longest_prefix(chain_of((4, 5, 6)))) == 3


def test_a_block_with_two_holders_is_free_only_after_both() -> None:
    pool = BlockPool(4)
    blocks = fill(pool, "a", (1, 2))
    assert pool.allocate(TaskId("b"), 1, blocks) is not None
    assert pool.blocks_of(TaskId("b"))[:2] == blocks
    pool.release(TaskId("a"))
    assert pool.num_free_blocks == 1
    assert pool.allocate(TaskId("c"), 2) is None
    pool.release(TaskId("b"))
    assert pool.num_free_blocks == 4


def test_a_prefix_is_not_evicted_to_make_room_for_its_own_continuation() -> None:
    pool = BlockPool(3)
    blocks = fill(pool, "a", (1, 2))
    pool.release(TaskId("a"))
    assert pool.allocate(TaskId("b"), 2, blocks) is None
    assert pool.longest_prefix(chain_of((1, 2))) == blocks


def test_equal_content_computed_twice_is_kept_once() -> None:
    pool = BlockPool(4)
    first = fill(pool, "a", (1, 2))
    fill(pool, "b", (1, 2))
    assert pool.longest_prefix(chain_of((1, 2))) == first
    pool.release(TaskId("a"))
    pool.release(TaskId("b"))
    assert (pool.num_free_blocks, pool.num_cached_blocks) == (4, 2)


def test_what_came_and_went_again_is_not_told() -> None:
    pool = BlockPool(2)
    fill(pool, "a", (1, 2))
    told = pool.take_prefix_changes()
    assert told is not None
    assert told.added == tuple(map(prefix_key, chain_of((1, 2))))
    pool.release(TaskId("a"))
    pool.allocate(TaskId("b"), 2)
    pool.release(TaskId("b"))
    fill(pool, "c", (1, 3))
    told = pool.take_prefix_changes()
    assert told is not None
    assert told.added == (prefix_key(chain_of((1, 3))[1]),)
    assert told.removed == (prefix_key(chain_of((1, 2))[1]),)
