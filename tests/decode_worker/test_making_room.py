"""A mixed worker lets answers wait that can for a prompt that cannot, or says that nobody can."""

from dataclasses import replace
from math import inf

import pytest

from decode_worker.answers_testing import BLOCK_SIZE, NOW, Answer, begin, finish, reports
from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from decode_worker.turn_taking import new_core as core_for
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batch_time_recovery import Preemption
from scheduling.batching import BatchingRule
from scheduling.batching_rules import FillToTarget
from scheduling.feedback_queues import FeedbackQueues
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitPrompt,
    CancelTask,
    DecodeStarted,
    GrantGrowth,
    MakeRoom,
    Preempted,
    Report,
    ResumeGeneration,
    RoomMade,
    SwappedOut,
    TaskReleased,
    TokensEmitted,
)
from scheduling.mlfq import MlfqSettings
from scheduling.victims import LargestSlack
from scheduling.worker_events import CommandArrived, SessionId, SwapOut

SESSION = SessionId(1)
EXPORT = KvExport("loopback", "a", 64, 64, WorkerId("mixed-0"), Incarnation(1), "h")
PROMPT = TaskId("urgent/0")
RULE = FillToTarget(256)


def new_core(
    num_swap_blocks: int = 64,
    num_blocks: int = 24,
    *,
    is_mixed: bool = True,
    parked_yields: bool = True,
    batching: BatchingRule = RULE,
) -> DecodeCore:
    settings = DecodeSettings(
        num_blocks,
        BLOCK_SIZE,
        max_num_seqs=8,
        num_swap_blocks=num_swap_blocks,
        preemption=Preemption.FIRST,
        is_mixed=is_mixed,
        victims=LargestSlack(),
        is_eager=True,
        parked_yields=parked_yields,
        batching=batching,
    )
    return core_for(settings, EXPORT)


def running(core: DecodeCore, *answers: Answer, num_steps: int = 6) -> None:
    """They have got so many tokens."""
    for each in answers:
        begin(core, each, in_place=True)
    for _ in range(num_steps):
        _, plan = core.plan(NOW)
        assert plan is not None
        finish(core, plan)


def wish(core: DecodeCore, num_blocks: int, due_in_s: float = 1.0) -> list[Report]:
    """What the worker says of it."""
    command = MakeRoom(PROMPT, num_blocks, due_in_s)
    told = reports(core.handle(CommandArrived(SESSION, command, NOW)))
    core.check_invariants()
    return told


def answer(name: str, tpot_s: float = inf, num_blocks: int = 6) -> Answer:
    return Answer(name, 8, num_blocks, tpot_s=tpot_s)


def held_by(core: DecodeCore, *answers: Answer) -> list[int]:
    return [core.pool.num_blocks_of(each.task_id) for each in answers]


def test_the_answer_that_is_furthest_ahead_waits_in_host_memory() -> None:
    core, slow, fast = new_core(), answer("slow", 9.0), answer("fast", 3.0)
    running(core, fast, slow)
    *told, swapped, made = wish(core, 4)
    assert all(isinstance(report, TokensEmitted) for report in told)
    assert isinstance(swapped, SwappedOut)
    assert swapped.task_id == slow.task_id
    assert made == RoomMade(PROMPT, 6)
    assert held_by(core, slow, fast) == [0, 6]


def test_several_make_room_where_one_has_too_little() -> None:
    core, both = new_core(), (answer("a"), answer("b"))
    running(core, *both)
    told = wish(core, 9)
    assert {report.task_id for report in told if isinstance(report, SwappedOut)} == {
        each.task_id for each in both
    }
    assert told[-1] == RoomMade(PROMPT, 12)
    assert core.pool.num_free_blocks == core.pool.num_blocks


@pytest.mark.parametrize(
    ("num_blocks", "due_in_s", "tpot_s"),
    [
        # Both together hold twelve.
        (13, 1.0, inf),
        # They are not far enough ahead: half of it is for the way back.
        (4, 5.0, 1.0),
        (4, 600.0, inf),
    ],
)
def test_a_wish_that_nobody_can_grant_changes_nothing(
    num_blocks: int, due_in_s: float, tpot_s: float
) -> None:
    core, both = new_core(), (answer("a", tpot_s), answer("b", tpot_s))
    running(core, *both)
    load, tables = core.load, [core.pool.blocks_of(each.task_id) for each in both]
    assert wish(core, num_blocks, due_in_s) == [RoomMade(PROMPT, 0)]
    assert core.load == load
    assert [core.pool.blocks_of(each.task_id) for each in both] == tables
    _, plan = core.plan(NOW)
    assert plan is not None
    assert len(plan.chunks) == 2


def test_who_minds_the_single_gap_does_not_wait() -> None:
    core, one = new_core(), answer("a")
    prompt = AdmitPrompt(one.task_id, replace(one.spec, tbt_s=1.5), 6)
    core.handle(CommandArrived(SESSION, prompt, NOW))
    running(core)
    assert wish(core, 4, due_in_s=1.0) == [RoomMade(PROMPT, 0)]
    # Half of the gap is for its way back.
    assert wish(core, 4, due_in_s=0.7)[-1] == RoomMade(PROMPT, 6)


def test_an_answer_that_has_only_begun_is_left_alone() -> None:
    """Otherwise one might make room again and again, and never come to its end."""
    core, one = new_core(), answer("a")
    running(core, one, num_steps=BLOCK_SIZE - 1)
    assert wish(core, 4) == [RoomMade(PROMPT, 0)]
    running(core, num_steps=1)
    assert wish(core, 4)[-1] == RoomMade(PROMPT, 6)
    back = CommandArrived(SESSION, ResumeGeneration(one.task_id, 6), NOW)
    assert DecodeStarted(one.task_id) in reports(core.handle(back))
    running(core, num_steps=BLOCK_SIZE - 1)
    assert wish(core, 4) == [RoomMade(PROMPT, 0)]


def test_without_host_memory_it_is_computed_again() -> None:
    core, one = new_core(num_swap_blocks=0), answer("a")
    running(core, one)
    told = wish(core, 4)
    assert told[-3:] == [
        Preempted(one.task_id),
        TaskReleased(one.task_id),
        RoomMade(PROMPT, 6),
    ]
    assert core.num_tasks == 0


def test_blocks_that_others_hold_as_well_are_no_room() -> None:
    core, one = new_core(), answer("a", num_blocks=8)
    running(core, one)
    twin = Answer("a2", 8, 8)
    shared = core.pool.blocks_of(one.task_id)[:2]
    assert all(map(core.pool.is_shareable, shared))
    core.pool.allocate(twin.task_id, 0, shared)
    assert core.pool.num_blocks_alone(one.task_id) == 6
    command = CommandArrived(SESSION, MakeRoom(PROMPT, 7, 1.0), NOW)
    assert reports(core.handle(command)) == [RoomMade(PROMPT, 0)]
    command = CommandArrived(SESSION, MakeRoom(PROMPT, 6, 1.0), NOW)
    assert reports(core.handle(command))[-1] == RoomMade(PROMPT, 6)


def test_answers_that_lack_blocks_come_before_the_prompt() -> None:
    core = new_core(num_blocks=12)
    full, other = Answer("full", 8, 3), answer("other", num_blocks=9)
    running(core, full, other, num_steps=5)
    core.handle(CommandArrived(SESSION, GrantGrowth(full.task_id, 0), NOW))
    assert wish(core, 4) == [RoomMade(PROMPT, 0)]


@pytest.mark.parametrize(
    "core",
    [
        new_core(is_mixed=False),
        # What it parks would close it to the prompt.
        new_core(parked_yields=False),
        new_core(batching=FeedbackQueues(OnlineBatchTime(), MlfqSettings(8, 256))),
    ],
)
def test_other_workers_make_no_room(core: DecodeCore) -> None:
    assert wish(core, 1) == [RoomMade(PROMPT, 0)]


def test_who_waits_can_be_cancelled_and_leaves_nothing() -> None:
    core, one = new_core(), answer("a")
    running(core, one)
    wish(core, 4)
    cancelled = core.handle(CommandArrived(SESSION, CancelTask(one.task_id, "left"), NOW))
    assert reports(cancelled) == [TaskReleased(one.task_id)]
    core.check_invariants()
    assert (core.num_tasks, core.load.num_free_swap_blocks) == (0, 64)


def test_its_kv_is_copied_before_its_blocks_are_given_to_others() -> None:
    core, one = new_core(), answer("a")
    running(core, one)
    table = core.pool.blocks_of(one.task_id)
    actions = core.handle(CommandArrived(SESSION, MakeRoom(PROMPT, 4, 1.0), NOW))
    (copy,) = [action for action in actions if isinstance(action, SwapOut)]
    # Prompt and output but the newest token, which has no KV.
    assert copy.block_ids == table[: -(-13 // BLOCK_SIZE)]
