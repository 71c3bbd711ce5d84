"""Guests inside a host's allocation: where they begin, and that nobody ever meets anybody."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.block_leases import LeaseKind
from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.ids import BlockId, TaskId
from scheduling.kvc_pipeline import (
    Guest,
    GuestTask,
    HostView,
    PipelineRule,
    choose_guests,
    fits,
    guest_places,
    host_view,
)
from scheduling.length_groups import LengthGroups

HOST = TaskId("host")


class Batch:
    """Sequences that write one token per iteration, in the blocks of a pool.

    `memory` is what the slots hold; a token that is not there any more fails the test.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.num_written: dict[TaskId, int] = {}
        # Of a sequence, how many tokens it will have written at its end.
        self.ends_at: dict[TaskId, int] = {}
        self.memory: dict[tuple[BlockId, int], tuple[TaskId, int]] = {}
        self.num_tokens = 0
        self.num_collisions = 0

    def start(self, task_id: TaskId, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """The prompt is there already; the table is the caller's to allocate."""
        self.num_written[task_id] = 0
        self.ends_at[task_id] = num_prompt_tokens + num_response_tokens
        for _ in range(num_prompt_tokens):
            self.append(task_id)

    def admit(self, guest: Guest, num_prompt_tokens: int, num_response_tokens: int) -> None:
        own = num_blocks_for(num_prompt_tokens, self.block_size)
        assert self.pool.allocate(guest.task_id, own) is not None
        lent = self.pool.lend(
            guest.host_id, guest.task_id, guest.start_block, guest.num_blocks, LeaseKind.PIPELINE
        )
        assert lent is not None
        self.start(guest.task_id, num_prompt_tokens, num_response_tokens)

    def view(self, task_id: TaskId) -> HostView:
        return host_view(self.pool, task_id, self.block_size, self.num_written.__getitem__)

    def views(self) -> list[HostView]:
        return [self.view(task_id) for task_id in self.num_written]

    def iterate(self) -> None:
        """Ends before appends: what a guest leaves, its host may enter at once."""
        for task_id in list(self.num_written):
            if self.num_written[task_id] == self.ends_at[task_id]:
                self.end(task_id)
        for task_id in self.num_written:
            self.append(task_id)
            self.num_tokens += 1
        self.pool.check_invariants()

    def append(self, task_id: TaskId) -> None:
        position = self.num_written[task_id]
        block, offset = divmod(position, self.block_size)
        if block == self.pool.num_blocks_of(task_id):
            assert self.pool.allocate(task_id, 1) is not None, "the reserve is large enough"
        if not self.pool.may_write(task_id, block):
            self.num_collisions += 1
            assert self.pool.replace_lent(task_id, block) is not None
        block_id = self.pool.blocks_of(task_id)[block]
        self.memory[block_id, offset] = (task_id, position)
        self.num_written[task_id] += 1

    def end(self, task_id: TaskId) -> None:
        blocks = self.pool.blocks_of(task_id)
        for position in range(self.num_written[task_id]):
            block, offset = divmod(position, self.block_size)
            assert self.memory[blocks[block], offset] == (task_id, position), "written over"
        self.pool.release(task_id)
        del self.num_written[task_id], self.ends_at[task_id]


def queue_of(lengths: Iterable[int]) -> LengthGroups:
    """Tasks of these response lengths, all due at the same time."""
    queue = LengthGroups(1000, length_quantum=1)
    for number, length in enumerate(lengths):
        queue.push(TaskId(f"g{number}"), (0.0, 0.0, -float(length)), length)
    return queue


def without_prompt(_: TaskId) -> GuestTask:
    return GuestTask(num_written_tokens=0, num_new_blocks=0)


def guests_of(batch: Batch, queue: LengthGroups, rule: PipelineRule) -> list[tuple[Guest, int]]:
    """Guests with the lengths that they were predicted; admitted as well."""
    lengths = {task_id: queue.num_response_tokens_of(task_id) for task_id in queue.in_order()}
    chosen = choose_guests(
        batch.views(), queue, rule, without_prompt, num_free_blocks=0, max_guests=1000
    )
    for guest in chosen:
        batch.admit(guest, 0, lengths[guest.task_id])
    return [(guest, lengths[guest.task_id]) for guest in chosen]


def slots_of(batch: Batch, guests: Iterable[tuple[Guest, int]]) -> list[tuple[int, int]]:
    """(response length, first slot), where a slot of the pool is a block of one token."""
    return [(length, batch.pool.blocks_of(guest.task_id)[0]) for guest, length in guests]


def batch_with_host(num_slots: int, block_size: int = 1, num_spare_blocks: int = 0) -> Batch:
    batch = Batch(num_slots // block_size + num_spare_blocks, block_size)
    batch.pool.allocate(HOST, num_slots // block_size)
    batch.start(HOST, 0, num_slots)
    return batch


# PAPERS 1.2e, the worked example; 1.4.1.
def test_eight_sequences_pass_through_the_thirty_two_slots_of_one() -> None:
    batch = batch_with_host(32)
    rule = PipelineRule(block_size=1, num_buffer_blocks=0, min_guest_blocks=4)
    guests = guests_of(batch, queue_of([4, 4, 8, 16, 4, 8, 4, 3, 2]), rule)
    assert sorted(slots_of(batch, guests), key=lambda slot: (-slot[0], slot[1])) == [
        (16, 16),
        (8, 8),
        (8, 24),
        (4, 4),
        (4, 12),
        (4, 20),
        (4, 28),
    ]
    for _ in range(33):
        batch.iterate()
    assert (batch.num_tokens, batch.num_collisions) == (80, 0)
    assert batch.pool.num_free_blocks == 32


def test_a_host_lends_again_what_is_left_when_its_guests_have_gone() -> None:
    batch = batch_with_host(32)
    rule = PipelineRule(block_size=1, num_buffer_blocks=0, min_guest_blocks=4)
    guests_of(batch, queue_of([16]), rule)
    for _ in range(16):
        batch.iterate()
    batch.end(TaskId("g0"))
    (place,) = guest_places(batch.view(HOST), rule)
    assert (place.start_block, place.max_response_tokens) == (24, 8)


# PAPERS 1.2e, the example with buffers; 1.4.1.
@pytest.mark.parametrize("buffer", [0, 2, 4, 8])
def test_sixteen_sequences_in_sixty_four_slots_never_meet(buffer: int) -> None:
    batch = batch_with_host(64)
    rule = PipelineRule(block_size=1, num_buffer_blocks=buffer, min_guest_blocks=4)
    # So many of each length that every place finds the longest guest that it can take.
    queue = queue_of(length for length in range(4, 33) for _ in range(16))
    guests = guests_of(batch, queue, rule)
    if not buffer:
        assert sorted(length for _, length in guests) == [4] * 8 + [8] * 4 + [16] * 2 + [32]
    for _ in range(65):
        batch.iterate()
    assert batch.num_tokens == 64 + sum(length for _, length in guests)
    assert batch.num_collisions == 0


# PAPERS 1.4.2.
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("num_buffer_blocks", [0, 1, 3])
def test_the_longest_guest_is_half_the_host_without_the_buffer(
    block_size: int, num_buffer_blocks: int
) -> None:
    rule = PipelineRule(block_size, num_buffer_blocks, min_guest_blocks=1)
    num_blocks = 16
    host = HostView(HOST, num_written_tokens=0, num_blocks=num_blocks)
    (place,) = guest_places(host, rule)
    limit = (num_blocks // 2 - num_buffer_blocks) * block_size
    assert (place.start_block, place.max_response_tokens) == (8, limit)

    guest = Guest(TaskId("guest"), HOST, place.start_block, num_blocks // 2)
    task = GuestTask(num_written_tokens=0, num_new_blocks=0)
    assert fits(host, rule, guest, task, limit)
    assert not fits(host, rule, guest, task, limit + 1)
    for length, is_chosen in ((limit, True), (limit + 1, False)):
        queue = queue_of([length])
        chosen = choose_guests([host], queue, rule, without_prompt, num_free_blocks=0, max_guests=1)
        assert bool(chosen) == is_chosen
        assert len(queue) == (0 if is_chosen else 1)

    batch = batch_with_host(num_blocks * block_size, block_size)
    batch.admit(guest, 0, limit)
    middle = num_blocks // 2 * block_size
    while batch.num_written[HOST] < middle:
        batch.iterate()
    # It has written its last token; the host's next one is the first beyond the middle.
    assert batch.num_written.get(TaskId("guest"), limit) == limit
    batch.iterate()
    assert TaskId("guest") not in batch.num_written
    assert batch.num_collisions == 0


def test_a_place_begins_at_a_block_not_before_the_middle_of_what_is_left() -> None:
    rule = PipelineRule(block_size=4, num_buffer_blocks=1, min_guest_blocks=1)
    # 37 slots are left: the middle is at 21.5, the next block begins at 24.
    (place,) = guest_places(HostView(HOST, 3, 10), rule)
    assert place.start_block == 6
    # The host arrives there after 21 tokens; 16 slots lie behind.
    assert place.max_response_tokens == 16
    assert guest_places(HostView(HOST, 40, 10), rule) == []


def test_a_guest_whose_prompt_left_half_a_block_borrows_less() -> None:
    rule = PipelineRule(block_size=4, num_buffer_blocks=1, min_guest_blocks=1)
    host = HostView(HOST, 0, 16)
    for num_written_tokens, num_blocks in ((8, 3), (9, 2), (6, 2), (5, 2), (7, 2)):
        task = GuestTask(num_written_tokens, num_new_blocks=0)
        needs = {TaskId("g0"): task}
        (guest,) = choose_guests(
            [host], queue_of([9]), rule, needs.__getitem__, num_free_blocks=0, max_guests=9
        )
        assert guest.num_blocks == num_blocks
        num_slots = num_blocks * 4 + -num_written_tokens % 4
        assert num_slots >= 9
        assert fits(host, rule, guest, task, num_slots)
        assert not fits(host, rule, guest, task, num_slots + 1)


def test_a_guest_stays_clear_of_every_head_that_is_behind_it() -> None:
    """A guest that hosts is to be reached by its own host first where it stood still."""
    rule = PipelineRule(block_size=1, num_buffer_blocks=1, min_guest_blocks=1)
    held_up = HostView(TaskId("guest"), 0, 16, num_lender_iterations=5)
    assert max(place.max_response_tokens for place in guest_places(held_up, rule)) == 4
    free = HostView(TaskId("guest"), 0, 16)
    assert max(place.max_response_tokens for place in guest_places(free, rule)) == 7


def test_guests_come_from_the_earliest_bucket_that_has_one_that_fits() -> None:
    queue = LengthGroups(10, length_quantum=1)
    for name, bucket, length in (("late", 2.0, 8), ("early", 1.0, 5), ("long", 0.0, 9)):
        queue.push(TaskId(name), (bucket, 0.0, -float(length)), length)
    rule = PipelineRule(block_size=1, num_buffer_blocks=0, min_guest_blocks=4)
    (guest,) = choose_guests(
        [HostView(HOST, 0, 16)], queue, rule, without_prompt, num_free_blocks=0, max_guests=1
    )
    assert guest.task_id == TaskId("early")


def test_a_guest_without_room_for_its_prompt_leaves_the_place_to_a_shorter_one() -> None:
    queue = queue_of([8, 7])
    needs = {TaskId("g0"): GuestTask(4, 4), TaskId("g1"): GuestTask(2, 2)}
    rule = PipelineRule(block_size=1, num_buffer_blocks=0, min_guest_blocks=4)
    chosen = choose_guests(
        [HostView(HOST, 0, 16)], queue, rule, needs.__getitem__, num_free_blocks=3, max_guests=9
    )
    assert [guest.task_id for guest in chosen] == [TaskId("g1")]
    assert list(queue.in_order()) == [TaskId("g0")]


def test_no_more_guests_are_taken_than_the_batch_has_slots() -> None:
    rule = PipelineRule(block_size=1, num_buffer_blocks=0, min_guest_blocks=1)
    chosen = choose_guests(
        [HostView(HOST, 0, 64)],
        queue_of([4] * 9),
        rule,
        without_prompt,
        num_free_blocks=0,
        max_guests=3,
    )
    assert len(chosen) == 3


def test_a_rule_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        PipelineRule(block_size=0)
    with pytest.raises(ValueError, match="at least 0"):
        PipelineRule(block_size=1, num_buffer_blocks=-1)


# PAPERS 1.4.1: late joins, nests, prompts that end anywhere in a block, and exact predictions.
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8]), st.integers(1, 2))
def test_nobody_meets_anybody_where_lengths_are_known(
    seed: int, block_size: int, num_buffer_blocks: int
) -> None:
    batch = crowd(random.Random(seed), PipelineRule(block_size, num_buffer_blocks, 1), overrun=0)
    assert batch.num_collisions == 0


# PAPERS 1.4.3, the block side: whoever runs over its prediction takes blocks of the reserve; so
# does a host that meets a guest.
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8]))
def test_guests_that_run_over_cost_blocks_and_never_a_token(seed: int, block_size: int) -> None:
    crowd(random.Random(seed), PipelineRule(block_size, 0, 1), overrun=12)


def test_overruns_do_lead_to_collisions() -> None:
    """Otherwise the test above shows nothing."""
    rule = PipelineRule(4, 0, 1)
    batches = [crowd(random.Random(seed), rule, overrun=12) for seed in range(5)]
    assert sum(batch.num_collisions for batch in batches) > 5


def crowd(rng: random.Random, rule: PipelineRule, overrun: int) -> Batch:
    """Hosts that start at different times, guests wherever there is a place; true lengths are off
    by up to `overrun`, either way. Every sequence checks all of its tokens when it ends."""
    batch = Batch(num_blocks=600, block_size=rule.block_size)
    queue = LengthGroups(1000, length_quantum=1)
    needs: dict[TaskId, GuestTask] = {}
    true_lengths: dict[TaskId, int] = {}

    def true_length(predicted: int) -> int:
        return max(1, predicted + rng.randint(-overrun, overrun))

    for number in range(30):
        task_id, length = TaskId(f"g{number}"), rng.randint(1, 24)
        num_prompt_tokens = rng.randint(0, 9)
        own = num_blocks_for(num_prompt_tokens, rule.block_size)
        needs[task_id] = GuestTask(num_prompt_tokens, own)
        true_lengths[task_id] = true_length(length)
        queue.push(task_id, (float(rng.randint(0, 1)), 0.0, -float(length)), length)
    for number in range(70):
        if number % 5 == 0 and number < 20:
            prompt, length = rng.randint(0, 9), rng.randint(16, 64)
            host = TaskId(f"h{number}")
            batch.pool.allocate(host, num_blocks_for(prompt + length, rule.block_size))
            batch.start(host, prompt, true_length(length))
        chosen = choose_guests(
            batch.views(),
            queue,
            rule,
            needs.__getitem__,
            num_free_blocks=40,
            max_guests=rng.randint(0, 6),
        )
        for guest in chosen:
            num_written = needs[guest.task_id].num_written_tokens
            batch.admit(guest, num_written, true_lengths[guest.task_id])
        batch.iterate()
    while batch.num_written:
        batch.iterate()
    assert batch.pool.num_free_blocks == 600
    return batch
