"""Whether a sequence that makes room keeps its KV: by what copies and passes took on its worker."""

import pytest

from decode_worker.answers_testing import BLOCK_SIZE, Answer, begin, finish, reports
from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.batch_time_recovery import Preemption
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    CancelTask,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    Report,
    ResumeGeneration,
    SwappedOut,
)
from scheduling.worker_events import CommandArrived, KvSwapped, SessionId

BLOCK_BYTES = 64
EXPORT = KvExport("loopback", "a", 8, BLOCK_BYTES, WorkerId("decode-0"), Incarnation(1), "h")
# Of two answers like it that fill the pool; it makes room with 12 tokens in 3 blocks.
FIRST, SECOND = Answer("first", 4, 3, max_tokens=12), Answer("second", 5, 3, max_tokens=12)
NUM_KV_BLOCKS = 3
# In this many seconds a block is copied one way, and these take 60 ms, or 0.6 us, there and back.
SLOW, FAST = BLOCK_BYTES / 0.01, BLOCK_BYTES / 1e-7


def new_core(
    bytes_per_s: float,
    preemption: Preemption = Preemption.CHEAPER,
    num_swap_blocks: int = 10,
    *,
    is_mixed: bool = False,
) -> DecodeCore:
    settings = DecodeSettings(
        num_blocks=6,
        block_size=BLOCK_SIZE,
        max_num_seqs=4,
        growth_blocks=1,
        prefix_caching=False,
        num_swap_blocks=num_swap_blocks,
        preemption=preemption,
        swap_bytes_per_s=bytes_per_s,
        is_mixed=is_mixed,
    )
    core = DecodeCore(settings, EXPORT)
    for answer in (FIRST, SECOND):
        begin(core, answer, in_place=False)
    return core


def what_becomes_of_the_first(core: DecodeCore, pass_s: float) -> Report:
    """Each pass takes so long, and nobody gets another block."""
    now = 0.0
    for _ in range(20):
        actions, plan = core.plan(now)
        now += pass_s
        told = reports(actions) + ([] if plan is None else finish(core, plan))
        for report in told:
            if isinstance(report, Preempted | SwappedOut):
                core.check_invariants()
                return report
            if isinstance(report, GrowthNeeded):
                core.handle(CommandArrived(SessionId(1), GrantGrowth(report.task_id, 0)))
    raise AssertionError("nobody makes room")


# PAPERS 2.4.5: the chosen recovery is the argmin of measured costs on both sides of the crossover.
@pytest.mark.parametrize(
    ("bytes_per_s", "pass_s", "is_swapped"),
    [(SLOW, 0.001, False), (FAST, 0.001, True), (SLOW, 10.0, True)],
)
def test_kv_is_kept_where_that_costs_less_than_the_passes_that_make_it_again(
    bytes_per_s: float, pass_s: float, is_swapped: bool
) -> None:
    report = what_becomes_of_the_first(new_core(bytes_per_s), pass_s)
    task_id = FIRST.task_id
    kept, given_up = SwappedOut(task_id, NUM_KV_BLOCKS), Preempted(task_id)
    assert report == (kept if is_swapped else given_up)


@pytest.mark.parametrize("becomes_fast", [True, False])
def test_copies_that_were_timed_count_for_more_than_what_was_assumed(becomes_fast: bool) -> None:
    core = new_core(SLOW if becomes_fast else FAST)
    s_per_block = BLOCK_BYTES / (FAST if becomes_fast else SLOW)
    for _ in range(40):
        core.handle(KvSwapped(8, 8 * s_per_block, is_out=True))
        core.handle(KvSwapped(8, 8 * s_per_block, is_out=False))
    report = what_becomes_of_the_first(core, pass_s=0.001)
    assert isinstance(report, SwappedOut if becomes_fast else Preempted)


def test_beside_answers_of_the_same_worker_computing_again_costs_less() -> None:
    # A pass of its own costs 10 ms and more; beside another answer hardly anything is added.
    between = BLOCK_BYTES / 0.001
    alone = what_becomes_of_the_first(new_core(between), pass_s=0.01)
    mixed = what_becomes_of_the_first(new_core(between, is_mixed=True), pass_s=0.01)
    assert isinstance(alone, SwappedOut)
    assert isinstance(mixed, Preempted)


def test_a_full_host_memory_leaves_no_choice() -> None:
    core = new_core(FAST, num_swap_blocks=NUM_KV_BLOCKS - 1)
    assert what_becomes_of_the_first(core, pass_s=10.0) == Preempted(FIRST.task_id)


@pytest.mark.parametrize(
    ("preemption", "bytes_per_s", "expected"),
    [
        (Preemption.FIRST, SLOW, SwappedOut),
        (Preemption.SWAP, SLOW, SwappedOut),
        (Preemption.RECOMPUTE, FAST, Preempted),
    ],
)
def test_other_rules_ask_for_no_costs(
    preemption: Preemption, bytes_per_s: float, expected: type[Report]
) -> None:
    core = new_core(bytes_per_s, preemption)
    assert isinstance(what_becomes_of_the_first(core, pass_s=0.001), expected)


def test_what_was_kept_by_choice_goes_on_like_any_other() -> None:
    core = new_core(FAST)
    what_becomes_of_the_first(core, pass_s=0.001)
    assert core.load.num_parked == 1
    core.handle(CommandArrived(SessionId(1), CancelTask(SECOND.task_id, "left")))
    resume = CommandArrived(SessionId(1), ResumeGeneration(FIRST.task_id, 4))
    assert reports(core.handle(resume)) == [DecodeStarted(FIRST.task_id)]
    core.check_invariants()


def test_a_worker_tells_how_far_its_model_of_passes_is_off() -> None:
    core = new_core(FAST)
    assert core.load.pass_time_error is None
    what_becomes_of_the_first(core, pass_s=0.02)
    error = core.load.pass_time_error
    assert error is not None
    assert error.num_passes == 2
    assert 0 <= error.median <= error.p90


def test_a_worker_that_needs_no_model_learns_none_unless_it_is_told_to() -> None:
    def error_of(*, is_learning: bool) -> object:
        settings = DecodeSettings(8, BLOCK_SIZE, 4, is_learning=is_learning)
        core = DecodeCore(settings, EXPORT)
        begin(core, Answer("one", 4, 4), in_place=False)
        for step in range(8):
            _, plan = core.plan(0.01 * step)
            assert plan is not None
            finish(core, plan)
        return core.load.pass_time_error

    assert error_of(is_learning=False) is None
    assert error_of(is_learning=True) is not None
