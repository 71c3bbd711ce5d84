"""Every block is free or has one owner, whatever is allocated and released."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.block_leases import LeaseKind
from scheduling.block_pool import BlockPool, num_blocks_for, runs_of
from scheduling.ids import TaskId
from scheduling.prefix_chain import chain_root, extend_chain

steps = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.none() | st.integers(0, 9)), max_size=40
)


@given(steps)
def test_no_block_is_lost_or_owned_twice(steps: list[tuple[str, int | None]]) -> None:
    pool = BlockPool(16)
    held = dict.fromkeys("abcd", 0)
    for owner, num_blocks in steps:
        if num_blocks is None:
            assert pool.release(TaskId(owner)) == held[owner]
            held[owner] = 0
        else:
            taken = pool.allocate(TaskId(owner), num_blocks)
            assert (taken is None) == (num_blocks > 16 - sum(held.values()))
            held[owner] += len(taken or ())
        pool.check_invariants()
        assert pool.num_free_blocks == 16 - sum(held.values())
        assert all(pool.num_blocks_of(TaskId(o)) == n for o, n in held.items())


@given(steps)
def test_a_block_never_comes_back_under_an_old_generation(
    steps: list[tuple[str, int | None]],
) -> None:
    pool = BlockPool(16)
    seen: set[tuple[int, int]] = set()
    for owner, num_blocks in steps:
        if num_blocks is None:
            pool.release(TaskId(owner))
            continue
        taken = pool.allocate(TaskId(owner), num_blocks) or ()
        grants = set(zip(taken, pool.generations_of(taken), strict=True))
        assert not grants & seen
        seen |= grants


def test_blocks_are_neighbours_where_a_run_is_long_enough() -> None:
    pool = BlockPool(10)
    for owner, num_blocks in (("a", 2), ("b", 2), ("c", 6)):
        pool.allocate(TaskId(owner), num_blocks)
    pool.release(TaskId("a"))
    pool.release(TaskId("c"))
    assert pool.allocate(TaskId("d"), 4) == (4, 5, 6, 7)
    assert pool.allocate(TaskId("e"), 4) == (0, 1, 8, 9)


def test_nobody_gets_a_part_of_what_does_not_fit() -> None:
    pool = BlockPool(4)
    assert pool.allocate(TaskId("a"), 5) is None
    assert pool.num_free_blocks == 4


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_runs_are_maximal() -> None:
    assert runs_of([1, 2, 3, 7, 9, 10]) == [(1, 4), (7, 8), (9, 11)]


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_the_last_block_may_be_partly_filled(num_tokens: int, num_blocks: int) -> None:
    assert num_blocks_for(num_tokens, 16) == num_blocks


def test_content_that_went_wrong_is_not_shared_again_by_another_holder() -> None:
    pool = BlockPool(4)
    (content,) = extend_chain(chain_root(), range(4), 4)
    (block,) = pool.allocate(TaskId("first"), 1) or ()
    pool.register(block, content)
    pool.allocate(TaskId("second"), 0, shared=(block,))
    pool.distrust(TaskId("first"))
    pool.register(block, content)
    assert pool.longest_prefix((content,)) == ()
    pool.release(TaskId("first"))
    pool.release(TaskId("second"))
    # Handed out anew, it holds something else.
    blocks = pool.allocate(TaskId("third"), 4) or ()
    assert block in blocks
    pool.register(block, content)
    assert pool.longest_prefix((content,)) == (block,)


@pytest.mark.parametrize("num_shared", [0, 2])
@pytest.mark.parametrize("num_lent", [0, 1])
def test_what_nobody_else_holds_is_free_once_its_holder_lets_go(
    num_shared: int, num_lent: int
) -> None:
    """Be it free or cached; neither what others share nor what it lent to them."""
    pool, holder, other = BlockPool(16), TaskId("holder"), TaskId("other")
    blocks = pool.allocate(holder, 5) or ()
    for block, content in zip(blocks, extend_chain(chain_root(), range(12), 4), strict=False):
        pool.register(block, content)
    pool.allocate(other, 1, blocks[:num_shared])
    assert pool.lend(holder, other, 4, num_lent, LeaseKind.PIPELINE) is not None
    num_alone, num_free = pool.num_blocks_alone(holder), pool.num_free_blocks
    assert num_alone == 5 - num_shared - num_lent
    pool.release(holder)
    pool.check_invariants()
    assert pool.num_free_blocks - num_free == num_alone
    assert pool.num_blocks_alone(holder) == 0
