"""Answers that wait on their worker for room of their own, with the KV of their prompts there."""

from typing import Any

import pytest

from decode_worker.answers_testing import Answer, begin
from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.batching_rules import FillToTarget
from scheduling.block_leases import BlocksInherited, LeaseKind, LentPlace
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitPrompt,
    BlocksRefused,
    CancelTask,
    Command,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    SequenceSpec,
    StartDecode,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    DropSequence,
    ExtendSequence,
    LoadSequence,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFinished,
    WorkerAction,
)

SESSION = SessionId(1)
A, B = TaskId("a/0"), TaskId("b/0")
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("mixed-0"), Incarnation(1), "h")


def new_core(num_blocks: int = 8, max_num_seqs: int = 2) -> DecodeCore:
    settings = DecodeSettings(num_blocks, 4, max_num_seqs, 1, batching=FillToTarget(32))
    return DecodeCore(settings, EXPORT)


def send(core: DecodeCore, command: Command) -> list[WorkerAction]:
    actions = core.handle(CommandArrived(SESSION, command))
    core.check_invariants()
    return actions


def admit(
    core: DecodeCore, task_id: TaskId, num_blocks: int = 2, max_tokens: int = 9, **fields: Any
) -> None:
    """A prompt of 6 tokens, whose answer is to wait."""
    first = 1000 * sum(task_id.encode())
    prompt = tuple(range(first, first + 6))
    sequence = SequenceSpec(prompt, (), SamplingParams(), StopParams(max_tokens))
    held = {"is_answer_held": True, **fields}
    assert send(core, AdmitPrompt(task_id, sequence, num_blocks, **held)) == []


def step(core: DecodeCore, finish: str | None = None) -> tuple[StepPlan, list[WorkerAction]]:
    actions, plan = core.plan(0.0)
    assert plan is not None
    sampling = (chunk for chunk in plan.chunks if chunk.samples)
    outputs = tuple(SampledOutput(c.slot, 8, "y", finish_reason=finish) for c in sampling)
    actions = actions + core.handle(StepFinished(outputs))
    core.check_invariants()
    return plan, actions


def compute(core: DecodeCore, *task_ids: TaskId) -> list[WorkerAction]:
    for task_id in task_ids:
        admit(core, task_id)
    return step(core)[1]


def reports(actions: list[WorkerAction]) -> list[object]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def test_an_answer_keeps_its_blocks_and_no_slot_until_it_may_begin() -> None:
    core = new_core()
    actions = compute(core, A)
    assert TokensEmitted(A, 0, (8,), "y") in reports(actions)
    assert [action for action in actions if isinstance(action, DropSequence)]
    assert core.plan(0.0) == ([], None), "nothing is asked for"
    assert (core.pool.num_blocks_of(A), core.load.num_running, core.load.num_tasks) == (2, 0, 1)
    assert core.held.num_kv_tokens == 6


def test_with_the_blocks_that_it_is_granted_it_goes_on_where_it_stopped() -> None:
    core = new_core()
    compute(core, A)
    assert send(core, GrantGrowth(A, 2)) == []
    assert core.plan(0.0) == ([], None)
    assert send(core, StartDecode(A, (8,))) == []
    assert len(core.held) == core.held.num_kv_tokens == 0
    plan, actions = step(core)
    (load,) = [action for action in actions if isinstance(action, LoadSequence)]
    assert (len(load.start.block_table), len(load.start.token_ids)) == (4, 7)
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.chunks] == [(6, 1)]
    assert TokensEmitted(A, 1, (8,), "y") in reports(actions)
    assert not any(isinstance(each, GrowthNeeded) for each in reports(actions))


def test_one_that_needs_no_more_blocks_begins_without_any() -> None:
    core = new_core()
    admit(core, A, num_blocks=4)
    step(core)
    send(core, StartDecode(A, (8,)))
    plan, _ = step(core)
    assert plan.num_tokens == 1


def test_its_slot_is_for_others_meanwhile() -> None:
    core = new_core(max_num_seqs=1)
    compute(core, A)
    compute(core, B)
    assert len(core.held) == 2
    for task_id in (A, B):
        send(core, GrantGrowth(task_id, 2))
        send(core, StartDecode(task_id, (8,)))
    plan, _ = step(core)
    assert len(plan.chunks) == 1
    assert (core.load.num_running, core.load.num_waiting) == (1, 1)


def test_blocks_that_the_pool_does_not_have_yet_stay_owed_and_come_from_whoever_ends() -> None:
    """The ledger was away, or forgot."""
    core = new_core(num_blocks=5)
    compute(core, A, B)
    assert core.pool.num_free_blocks == 1
    send(core, GrantGrowth(A, 2))
    send(core, StartDecode(A, (8,)))
    assert core.pool.num_blocks_of(A) == 3
    send(core, CancelTask(B, "left"))
    assert core.pool.num_blocks_of(A) == 4
    for _ in range(8):
        plan, _ = step(core)
        assert plan.num_tokens == 1


def test_owed_blocks_come_also_while_it_runs() -> None:
    core = new_core(num_blocks=4)
    compute(core, A, B)
    send(core, GrantGrowth(A, 2))
    send(core, StartDecode(A, (8,)))
    step(core)
    (extended,) = [a for a in send(core, CancelTask(B, "left")) if isinstance(a, ExtendSequence)]
    assert len(extended.block_ids) == 2


def test_who_is_cancelled_or_loses_its_router_gives_all_back() -> None:
    core = new_core()
    compute(core, A, B)
    send(core, GrantGrowth(A, 2))
    assert reports(send(core, CancelTask(A, "left"))) == [TaskReleased(A)]
    released = core.handle(SessionLost(SESSION))
    assert reports(released) == [TaskReleased(B)]
    core.check_invariants()
    assert (core.num_tasks, core.pool.num_free_blocks) == (0, 8)


def test_an_answer_that_ends_with_its_first_token_waits_for_nothing() -> None:
    core = new_core()
    admit(core, A)
    _, actions = step(core, finish="stop")
    assert TaskReleased(A) in reports(actions)
    assert len(core.held) == core.num_tasks == 0


def test_a_word_for_one_that_does_not_wait_changes_nothing() -> None:
    core = new_core()
    admit(core, A, num_blocks=4, is_answer_held=False)
    step(core)
    assert send(core, StartDecode(A, (8,))) == []
    assert core.load.num_running == 1


# --- answers that outgrow their room ------------------------------------------------------------


def new_core_with_line(num_blocks: int = 8, *, is_mixed: bool = True) -> DecodeCore:
    settings = DecodeSettings(
        num_blocks,
        4,
        max_num_seqs=2,
        growth_blocks=1,
        batching=FillToTarget(32),
        is_mixed=is_mixed,
        outgrown_wait_in_line=True,
    )
    return DecodeCore(settings, EXPORT)


def refuse_growth(core: DecodeCore) -> list[WorkerAction]:
    """One iteration; whoever asks for more blocks gets none."""
    actions, plan = core.plan(0.0)
    core.check_invariants()
    if plan is not None:
        sampling = (chunk for chunk in plan.chunks if chunk.samples)
        outputs = tuple(SampledOutput(chunk.slot, 8, "y") for chunk in sampling)
        actions = actions + core.handle(StepFinished(outputs))
    for report in reports(actions):
        if isinstance(report, GrowthNeeded):
            send(core, GrantGrowth(report.task_id, 0))
    return actions


def outgrow(core: DecodeCore, num_granted: int = 0, **fields: Any) -> list[WorkerAction]:
    """`A` fills its blocks, and as many more, and is refused others: what its worker does then."""
    admit(core, A, is_answer_held=False, **fields)
    for _ in range(num_granted):
        while not any(isinstance(report, GrowthNeeded) for report in reports(step(core)[1])):
            pass
        send(core, GrantGrowth(A, 1))
    for _ in range(20):
        actions = refuse_growth(core)
        if len(core.held):
            return actions
    raise AssertionError("it never waits")


# PAPERS 1.4.3 (1.2g, step 2): it stops, its KV stays where it is, and its slot is for others.
def test_an_answer_that_is_refused_more_room_keeps_its_blocks_and_waits_without_a_slot() -> None:
    core = new_core_with_line()
    actions = outgrow(core)
    drop, preempted = actions
    assert isinstance(drop, DropSequence)
    assert preempted == SendReport(SESSION, Preempted(A, keeps_kv=True))
    assert (core.pool.num_blocks_of(A), core.load.num_running, core.held.num_kv_tokens) == (2, 0, 8)
    assert core.plan(0.0) == ([], None), "nothing is asked for"
    compute(core, B)
    assert (core.load.num_running, len(core.held)) == (0, 2)


def test_it_goes_on_where_it_stopped_as_soon_as_it_is_granted_more() -> None:
    core = new_core_with_line()
    outgrow(core)
    assert send(core, GrantGrowth(A, 2)) == []
    assert send(core, StartDecode(A, (8, 8, 8))) == []
    plan, actions = step(core)
    (load,) = [action for action in actions if isinstance(action, LoadSequence)]
    assert (len(load.start.block_table), load.start.token_ids[6:]) == (4, (8, 8, 8))
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.chunks] == [(8, 1)]
    assert TokensEmitted(A, 3, (8,), "y") in reports(actions)


def test_it_is_cancelled_like_any_other_that_waits() -> None:
    core = new_core_with_line()
    outgrow(core)
    assert reports(send(core, CancelTask(A, "left"))) == [TaskReleased(A)]
    assert (core.num_tasks, core.pool.num_free_blocks, core.held.num_kv_tokens) == (0, 8, 0)


@pytest.mark.parametrize("num_granted", [0, 1])
def test_it_may_go_on_in_blocks_that_a_running_one_needs_only_later(num_granted: int) -> None:
    core = new_core_with_line(num_blocks=24)
    admit(core, B, num_blocks=16, is_answer_held=False)
    step(core)
    outgrow(core, num_granted, max_tokens=30)
    place = LentPlace(B, 9, 2, 8, LeaseKind.PIPELINE)
    (started,) = reports(send(core, StartDecode(A, (8, 8, 8), place)))
    assert started == DecodeStarted(A)
    assert core.pool.blocks_of(A)[2 + num_granted :] == core.pool.blocks_of(B)[9:11]
    for _ in range(6):
        plan, _ = step(core)
        assert plan.num_tokens == 2


@pytest.mark.parametrize("num_response", [9, 40])
def test_a_place_that_is_too_small_leaves_it_in_line(num_response: int) -> None:
    core = new_core_with_line(num_blocks=24)
    admit(core, B, num_blocks=16, is_answer_held=False)
    step(core)
    outgrow(core)
    # Two blocks beside those that it has filled.
    place = LentPlace(B, 9, 2, num_response, LeaseKind.PIPELINE)
    (refused,) = reports(send(core, StartDecode(A, (8, 8, 8), place)))
    assert isinstance(refused, BlocksRefused)
    assert len(core.held) == 1


def test_one_that_still_borrows_inherits_while_it_waits() -> None:
    core = new_core_with_line(num_blocks=24)
    admit(core, B, num_blocks=16, is_answer_held=False)
    step(core)
    outgrow(core, place=LentPlace(B, 9, 1, 6, LeaseKind.PIPELINE))
    inherited, released = reports(send(core, CancelTask(B, "left")))
    assert (inherited, released) == (BlocksInherited(A, 1), TaskReleased(B))
    assert core.pool.num_charged_blocks_of(A) == 3


def test_one_that_meets_its_guest_does_not_wait_in_line_but_makes_room() -> None:
    """It has not outgrown anything: what it lacks is in the middle of its own blocks."""
    core = new_core_with_line(num_blocks=9)
    admit(core, B, num_blocks=7, is_answer_held=False)
    step(core)
    outgrow(core, max_tokens=30, place=LentPlace(B, 5, 2, 8, LeaseKind.PIPELINE))
    told: list[object] = []
    while core.load.num_running:
        told = reports(refuse_growth(core))
        assert Preempted(B, keeps_kv=True) not in told
    assert Preempted(B) in told
    assert BlocksInherited(A, 2) in told
    assert (len(core.held), core.pool.num_free_blocks) == (1, 5)


def test_one_whose_prompt_was_computed_elsewhere_keeps_its_slot() -> None:
    core = new_core_with_line()
    begin(core, Answer("a", num_prompt=6, num_blocks=2), in_place=False)
    told: list[object] = []
    while core.load.num_running or not told:
        told += reports(refuse_growth(core))
    assert [report for report in told if isinstance(report, Preempted)] == [Preempted(A)]


def test_without_the_setting_and_where_no_prompt_is_computed_it_keeps_its_slot() -> None:
    for core in (new_core(), new_core_with_line(is_mixed=False)):
        admit(core, A, is_answer_held=False)
        for _ in range(5):
            refuse_growth(core)
        assert len(core.held) == 0
