"""Tasks embedded in the end of a host's allocation: the inequality, best fit, and no collision."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.block_leases import LeaseKind
from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.ids import BlockId, TaskId
from scheduling.kvc_embedding import EmbeddingHosts
from scheduling.kvc_pipeline import HostView

TASK = TaskId("task")


def host(name: str, num_written_tokens: int, num_blocks: int) -> HostView:
    return HostView(TaskId(name), num_written_tokens, num_blocks)


# PAPERS 2.4.2: a - (u + o) - (p + o) >= b.
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("num_buffer_tokens", [0, 8, 11])
def test_a_host_with_one_token_less_than_the_buffer_to_spare_is_refused(
    block_size: int, num_buffer_tokens: int
) -> None:
    allocated, prompt, output = 100, 20, 16
    used = allocated - output - (prompt + output) - num_buffer_tokens
    num_blocks = allocated // block_size
    for margin, is_accepted in ((num_buffer_tokens, True), (num_buffer_tokens - 1, False)):
        views = [host("host", used + num_buffer_tokens - margin, num_blocks)]
        guest = EmbeddingHosts(views, block_size, num_buffer_tokens).take(TASK, prompt, output)
        assert (guest is not None) == is_accepted
        if guest is not None:
            assert guest.start_block == (allocated - prompt - output) // block_size
            assert guest.start_block + guest.num_blocks == num_blocks


def test_a_task_takes_whole_blocks_of_its_host() -> None:
    # 18 tokens take 5 blocks of 4: the task begins at token 20, and the host may come to 12.
    for used, is_accepted in ((3, True), (4, False)):
        guest = EmbeddingHosts([host("host", used, 10)], 4, 8).take(TASK, 9, 9)
        assert (guest is not None) == is_accepted


def test_the_feasible_host_with_the_least_left_is_chosen() -> None:
    views = [host("much", 0, 90), host("enough", 0, 50), host("too little", 0, 30)]
    hosts = EmbeddingHosts(views, 1, 8)
    guest = hosts.take(TASK, 10, 10)
    assert guest is not None
    assert (guest.host_id, guest.start_block) == (TaskId("enough"), 30)
    # What it took is gone: the next one finds 30 left there, which is too little.
    guest = hosts.take(TASK, 10, 10)
    assert guest is not None
    assert (guest.host_id, guest.start_block) == (TaskId("much"), 70)


def test_a_host_ends_where_it_lent_something_and_who_borrows_hosts_nobody() -> None:
    lent = HostView(TaskId("lent"), 0, 90, lent_positions=(60, 61))
    borrows = HostView(TaskId("borrows"), 0, 90, num_lender_iterations=50)
    guest = EmbeddingHosts([lent, borrows], 1).take(TASK, 10, 10)
    assert guest is not None
    assert (guest.host_id, guest.start_block) == (TaskId("lent"), 40)
    assert EmbeddingHosts([borrows], 1).take(TASK, 10, 10) is None


def test_sizes_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        EmbeddingHosts([], 0)


# PAPERS 2.4.2: no block with two live owners during a full co-run.
@given(st.integers(0, 2**32), st.sampled_from([1, 4, 8]))
def test_embedded_tasks_end_before_their_host_comes_to_them(seed: int, block_size: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(1000)
    written: dict[TaskId, int] = {}
    ends_at: dict[TaskId, int] = {}
    memory: dict[tuple[BlockId, int], tuple[TaskId, int]] = {}

    def write(task_id: TaskId) -> None:
        position = written[task_id]
        block, offset = divmod(position, block_size)
        assert pool.may_write(task_id, block), "it would write over a task that lives"
        memory[pool.blocks_of(task_id)[block], offset] = (task_id, position)
        written[task_id] += 1

    def start(task_id: TaskId, prompt: int, output: int) -> None:
        written[task_id], ends_at[task_id] = 0, prompt + output
        for _ in range(prompt):
            write(task_id)

    for number in range(6):
        prompt, output = rng.randint(0, 20), rng.randint(20, 120)
        pool.allocate(TaskId(f"h{number}"), num_blocks_for(prompt + output, block_size))
        start(TaskId(f"h{number}"), prompt, output)
    number = 0
    while written:
        for task_id in [t for t in written if written[t] == ends_at[t]]:
            for position in range(written.pop(task_id)):
                block, offset = divmod(position, block_size)
                key = (pool.blocks_of(task_id)[block], offset)
                assert memory[key] == (task_id, position), "written over"
            pool.release(task_id)
        hosts = EmbeddingHosts(
            (
                HostView(
                    t,
                    written[t],
                    pool.num_blocks_of(t),
                    pool.lent_positions_of(t),
                    0 if pool.lender_positions_of(t) else None,
                )
                for t in written
            ),
            block_size,
            rng.choice([0, 8]),
        )
        for _ in range(rng.randint(0, 3)):
            number += 1
            prompt, output = rng.randint(1, 12), rng.randint(1, 12)
            guest = hosts.take(TaskId(f"e{number}"), prompt, output)
            if guest is not None:
                assert pool.lend(
                    guest.host_id,
                    guest.task_id,
                    guest.start_block,
                    guest.num_blocks,
                    LeaseKind.EMBEDDING,
                )
                start(guest.task_id, prompt, output)
        for task_id in written:
            if written[task_id] < ends_at[task_id]:
                write(task_id)
        pool.check_invariants()
    assert pool.num_free_blocks == 1000
