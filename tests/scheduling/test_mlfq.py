"""FastServe's queues: PAPERS section 10, FastServe details."""

from dataclasses import replace

import pytest

from scheduling.ids import TaskId
from scheduling.mlfq import (
    JobNeeds,
    KvPlace,
    KvRoom,
    MlfqChoice,
    MlfqSettings,
    SkipJoinMlfq,
)

SETTINGS = MlfqSettings(max_num_seqs=2, max_prompt_tokens=100)
ONE = replace(SETTINGS, max_num_seqs=1)
PLENTY = KvRoom(num_free_blocks=1000, num_free_host_blocks=1000, num_host_blocks=1000)
A, B, C, D = (TaskId(name) for name in "abcd")
NEW = JobNeeds(num_blocks=0, num_new_blocks=4, num_prompt_tokens=10)
DECODING = JobNeeds(num_blocks=4, num_new_blocks=0, num_prompt_tokens=0)
GROWING = replace(DECODING, num_new_blocks=1)


def mlfq_of(settings: MlfqSettings, *jobs: tuple[TaskId, float]) -> SkipJoinMlfq:
    """These jobs decode and hold four blocks each; the longest prompt is given first."""
    mlfq = SkipJoinMlfq(settings)
    for task_id, prefill_s in jobs:
        mlfq.add(task_id, prefill_s, NEW, now=0.0)
        assert task_id in mlfq.choose(PLENTY).run
        mlfq.update(task_id, DECODING)
    mlfq.check_invariants()
    return mlfq


@pytest.mark.parametrize(
    ("prefill_s", "queue"),
    [(0.0, 0), (0.010, 0), (0.011, 1), (0.020, 1), (0.030, 2), (0.081, 4), (1e9, 23)],
)
def test_a_job_joins_the_first_queue_whose_quantum_covers_its_prompt(
    prefill_s: float, queue: int
) -> None:
    mlfq = SkipJoinMlfq(SETTINGS)
    mlfq.add(A, prefill_s, NEW, now=0.0)
    assert mlfq.queue_of(A) == queue


def test_the_highest_queue_goes_first_and_in_it_who_came_first() -> None:
    mlfq = SkipJoinMlfq(SETTINGS)
    mlfq.add(A, 0.05, NEW, now=0.0)
    mlfq.add(B, 0.0, NEW, now=0.0)
    mlfq.add(C, 0.0, NEW, now=0.0)
    assert mlfq.choose(PLENTY).run == (B, C)


def test_a_new_job_of_a_higher_queue_takes_the_next_token_of_a_running_one() -> None:
    mlfq = mlfq_of(SETTINGS, (B, 0.05), (A, 0.05))
    mlfq.step_finished(0.01, now=0.01)
    mlfq.add(C, 0.0, NEW, now=0.01)
    assert mlfq.choose(PLENTY).run == (C, B)
    mlfq.step_finished(0.001, now=0.02)
    mlfq.remove(C)
    mlfq.remove(C)
    assert mlfq.choose(PLENTY).run == (B, A)
    assert len(mlfq) == 2


def test_who_has_used_its_quantum_up_falls_one_queue_and_gets_a_new_one() -> None:
    mlfq = SkipJoinMlfq(SETTINGS)
    mlfq.add(A, 0.0, NEW, now=0.0)
    queues = []
    for step in range(13):
        mlfq.choose(PLENTY)
        mlfq.step_finished(0.006, now=0.006 * step)
        queues.append(mlfq.queue_of(A))
    # More than 10 ms after 2 steps, more than 20 ms after 4, more than 40 ms after 7.
    assert queues == [0] + [1] * 4 + [2] * 7 + [3]


def test_the_lowest_queue_has_no_lower_one() -> None:
    mlfq = SkipJoinMlfq(replace(SETTINGS, num_queues=1))
    mlfq.add(A, 9.0, NEW, now=0.0)
    mlfq.choose(PLENTY)
    mlfq.step_finished(9.0, now=9.0)
    assert mlfq.queue_of(A) == 0
    mlfq.check_invariants()


def test_prompts_of_one_iteration_stay_below_the_cap_of_tokens() -> None:
    mlfq = SkipJoinMlfq(replace(SETTINGS, max_num_seqs=8))
    for task_id, num_tokens in ((A, 60), (B, 40), (C, 1), (D, 1)):
        mlfq.add(task_id, 0.0, replace(NEW, num_prompt_tokens=num_tokens), now=0.0)
    assert mlfq.choose(PLENTY).run == (A, B)
    mlfq.update(A, replace(NEW, num_prompt_tokens=5000))
    assert mlfq.choose(PLENTY).run == (A,), "longer than the cap: in pieces, alone"


def test_starving_jobs_are_promoted_every_thousand_iterations() -> None:
    mlfq = SkipJoinMlfq(ONE)
    mlfq.add(A, 0.0, NEW, now=0.0)
    mlfq.add(B, 0.1, NEW, now=0.0)
    mlfq.add(C, 0.2, NEW, now=1.5)
    mlfq.add(D, 0.2, NEW, now=0.5)
    for iteration in range(1, 1001):
        assert mlfq.choose(PLENTY).run == (A,)
        mlfq.step_finished(1e-6, now=0.004 * iteration)
        assert mlfq.queue_of(B) == (4 if iteration < 1000 else 0)
    assert mlfq.queue_of(C) == 5, "it has waited for less than three seconds"
    assert mlfq.choose(PLENTY).run == (B,), "in front of those of the first queue"
    mlfq.remove(B)
    assert mlfq.choose(PLENTY).run == (D,), "who has waited for longest goes first"
    mlfq.check_invariants()


def test_when_blocks_are_short_the_lowest_queue_is_swapped_out_first() -> None:
    mlfq = mlfq_of(SETTINGS, (D, 0.1), (C, 0.06), (B, 0.03), (A, 0.0))
    # A and B take no new blocks, but two are to stay free.
    choice = mlfq.choose(replace(PLENTY, num_free_blocks=1))
    assert choice == MlfqChoice(run=(A, B), swap_out=(D,))
    assert not mlfq.is_on_device(D)
    mlfq.update(A, replace(GROWING, num_new_blocks=3))
    choice = mlfq.choose(replace(PLENTY, num_free_blocks=4))
    assert choice == MlfqChoice(run=(A, B), swap_out=(C,))


def test_of_the_lowest_queue_the_last_is_swapped_out_first() -> None:
    mlfq = mlfq_of(SETTINGS, (D, 0.1), (C, 0.1), (B, 0.0), (A, 0.0))
    choice = mlfq.choose(replace(PLENTY, num_free_blocks=1))
    assert choice == MlfqChoice(run=(B, A), swap_out=(C,))


def test_more_blocks_than_the_batch_is_large_can_be_kept_free() -> None:
    mlfq = mlfq_of(replace(ONE, min_free_blocks=9), (D, 0.1), (A, 0.0))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=9)).swap_out == ()
    assert mlfq.choose(replace(PLENTY, num_free_blocks=8)).swap_out == (D,)


def test_with_blocks_to_spare_the_highest_come_back_before_it_is_their_turn() -> None:
    mlfq = mlfq_of(ONE, (D, 0.1), (C, 0.06), (A, 0.0))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=0)).swap_out == (D,)
    assert mlfq.choose(replace(PLENTY, num_free_blocks=0)).swap_out == (C,)
    # One is to stay free, and four are not enough for the next beside it.
    assert mlfq.choose(replace(PLENTY, num_free_blocks=4)) == MlfqChoice(run=(A,))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=9)) == MlfqChoice(run=(A,), swap_in=(C,))


def test_nothing_comes_back_in_the_step_in_which_something_leaves() -> None:
    mlfq = mlfq_of(replace(ONE, promotion_period=1), (D, 0.1), (A, 0.0))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=0)).swap_out == (D,)
    mlfq.step_finished(1e-6, now=5.0)
    assert mlfq.queue_of(D) == 0, "promoted while its KV is in host memory"
    assert mlfq.choose(replace(PLENTY, num_free_blocks=4)) == MlfqChoice(run=(), swap_out=(A,))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=8)) == MlfqChoice(run=(D,), swap_in=(D,))


def test_what_host_memory_cannot_hold_stays_and_nothing_new_begins() -> None:
    mlfq = mlfq_of(ONE, (D, 0.1), (A, 0.04))
    mlfq.add(B, 0.0, NEW, now=0.0)
    room = KvRoom(num_free_blocks=0, num_free_host_blocks=3, num_host_blocks=100)
    assert mlfq.choose(room) == MlfqChoice(run=(A,))
    assert mlfq.choose(replace(room, num_free_blocks=10)) == MlfqChoice(run=(A,))
    room = replace(room, num_free_host_blocks=10)
    assert mlfq.choose(room) == MlfqChoice(run=(B,), swap_out=(D, A))


def test_whoever_can_go_on_does_when_the_highest_cannot_get_its_blocks() -> None:
    mlfq = mlfq_of(ONE, (D, 0.1), (A, 0.0))
    mlfq.update(A, GROWING)
    full = KvRoom(num_free_blocks=0, num_free_host_blocks=0, num_host_blocks=0)
    assert mlfq.choose(full) == MlfqChoice(run=(D,))


def test_when_nobody_can_go_on_the_lowest_gives_its_blocks_up() -> None:
    mlfq = mlfq_of(ONE, (D, 0.1), (A, 0.0))
    mlfq.update(A, GROWING)
    mlfq.update(D, GROWING)
    full = KvRoom(num_free_blocks=0, num_free_host_blocks=0, num_host_blocks=0)
    assert mlfq.choose(full) == MlfqChoice(run=(), give_up=(D,))
    mlfq.check_invariants()
    assert mlfq.choose(replace(full, num_free_blocks=4)) == MlfqChoice(run=(A,))


@pytest.mark.parametrize(
    "harm",
    [
        {"max_num_seqs": 0},
        {"max_prompt_tokens": 0},
        {"num_queues": 0},
        {"promotion_period": 0},
        {"base_quantum_s": 0.0},
        {"quantum_growth": 1},
    ],
)
def test_settings_that_mean_nothing_are_refused(harm: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MlfqSettings(**{"max_num_seqs": 1, "max_prompt_tokens": 1, **harm})


# --- what an engine with a ledger and several steps at a time asks for ----------------------------


def test_many_steps_at_once_leave_a_job_where_as_many_single_ones_do() -> None:
    for num_steps in range(1, 40):
        single, many = SkipJoinMlfq(SETTINGS), SkipJoinMlfq(SETTINGS)
        for mlfq in (single, many):
            mlfq.add(A, 0.0, NEW, now=0.0)
            mlfq.choose(PLENTY)
        for step in range(num_steps):
            single.step_finished(0.006, now=0.006 * step)
        many.step_finished(0.006, now=0.006 * num_steps, num_steps=num_steps)
        for _ in range(3):  # what is left of the quantum is the same, too
            assert many.queue_of(A) == single.queue_of(A)
            for mlfq in (single, many):
                mlfq.step_finished(0.006, now=1.0)


def test_who_waits_for_something_else_than_room_is_passed_over() -> None:
    mlfq = mlfq_of(ONE, (B, 0.1), (A, 0.0))
    mlfq.update(A, replace(DECODING, can_run=False))
    assert mlfq.choose(PLENTY).run == (B,)
    mlfq.update(B, replace(DECODING, can_run=False))
    assert mlfq.choose(PLENTY, may_give_up=False) == MlfqChoice(run=())
    assert mlfq.choose(PLENTY) == MlfqChoice(run=(), give_up=(B,))


def test_who_waits_to_share_what_another_computes_is_passed_over_until_it_need_not() -> None:
    awaiting = {A, B}
    mlfq = SkipJoinMlfq(SETTINGS, awaiting.__contains__)
    for task_id in (A, B, C):
        mlfq.add(task_id, 0.0, NEW, now=0.0)
    mlfq.add(D, 0.1, DECODING, now=0.0, place=KvPlace.DEVICE)
    assert mlfq.choose(PLENTY).run == (C, D)
    awaiting |= {C, D}
    assert mlfq.choose(PLENTY).run == (C, D), "they have begun"
    awaiting.clear()
    assert mlfq.choose(PLENTY).run == (A, B)


def test_who_could_not_go_on_is_not_brought_back() -> None:
    mlfq = mlfq_of(ONE, (D, 0.1), (A, 0.0))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=0)).swap_out == (D,)
    mlfq.update(D, replace(DECODING, can_run=False))
    assert mlfq.choose(PLENTY) == MlfqChoice(run=(A,))
    mlfq.update(D, DECODING)
    assert mlfq.choose(PLENTY) == MlfqChoice(run=(A,), swap_in=(D,))


def test_in_host_memory_the_lowest_gives_its_blocks_up_when_nobody_is_on_the_device() -> None:
    mlfq = mlfq_of(ONE, (D, 0.1), (C, 0.06), (A, 0.0))
    for left in (D, C):
        assert mlfq.choose(replace(PLENTY, num_free_blocks=0)).swap_out == (left,)
    for task_id in (A, C, D):
        mlfq.update(task_id, replace(DECODING, can_run=False))
    for left in (A, D, C):
        assert mlfq.choose(PLENTY).give_up == (left,)
        mlfq.check_invariants()
        mlfq.remove(left)


def test_what_cannot_move_is_not_chosen_to_move() -> None:
    mlfq = mlfq_of(SETTINGS, (D, 0.1), (C, 0.1), (B, 0.0), (A, 0.0))
    mlfq.update(C, replace(DECODING, is_movable=False))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=1)).swap_out == (D,)


def test_a_choice_that_could_not_be_followed_is_put_right() -> None:
    mlfq = mlfq_of(SETTINGS, (D, 0.1), (C, 0.06), (B, 0.03), (A, 0.0))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=1)).swap_out == (D,)
    mlfq.put(D, KvPlace.DEVICE)
    assert mlfq.is_on_device(D)
    assert mlfq.choose(replace(PLENTY, num_free_blocks=1)).swap_out == (D,), "it is tried again"


def test_running_answers_do_not_move_for_what_is_to_stay_free() -> None:
    mlfq = mlfq_of(SETTINGS, (B, 0.0), (A, 0.0))
    assert mlfq.choose(replace(PLENTY, num_free_blocks=0)) == MlfqChoice(run=(B, A))


def test_without_host_memory_those_that_take_nothing_all_go_on() -> None:
    mlfq = mlfq_of(replace(SETTINGS, max_num_seqs=3), (C, 0.0), (B, 0.0), (A, 0.0))
    mlfq.update(C, replace(GROWING, num_new_blocks=2))
    full = KvRoom(num_free_blocks=1, num_free_host_blocks=0, num_host_blocks=0)
    assert mlfq.choose(full) == MlfqChoice(run=(B, A))


def test_answers_go_on_beside_a_prompt_that_has_to_wait_for_its_tokens() -> None:
    mlfq = SkipJoinMlfq(replace(SETTINGS, max_num_seqs=8))
    mlfq.add(D, 0.1, DECODING, now=0.0, place=KvPlace.DEVICE)
    for task_id, num_tokens in ((A, 60), (B, 50), (C, 10)):
        mlfq.add(task_id, 0.0, replace(NEW, num_prompt_tokens=num_tokens), now=0.0)
    assert mlfq.choose(PLENTY).run == (A, D), "no prompt overtakes another"
    assert not mlfq.has_chosen_all
    mlfq.remove(B)
    mlfq.remove(C)
    assert mlfq.has_chosen_all
    assert A in mlfq
    assert B not in mlfq
