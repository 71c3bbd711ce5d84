"""A mixed worker computes prompts in chunks beside its answers, and goes on in the same blocks."""

from dataclasses import replace
from itertools import pairwise

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.batch_time import BatchTime, shape_of
from scheduling.batching_rules import FillToTarget, PromptsFirst
from scheduling.deadline_fill import DeadlineFill
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitPrompt,
    CancelTask,
    PrefillStarted,
    Report,
    SequenceSpec,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    DropSequence,
    LoadSequence,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFailed,
    StepFinished,
    WorkerAction,
)

SESSION = SessionId(1)
A, B, C = TaskId("a/0"), TaskId("b/0"), TaskId("c/0")
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("mixed-0"), Incarnation(1), "h")


def new_core(
    num_blocks: int = 16, target_tokens: int = 8, max_num_seqs: int = 4, *, whole: bool = False
) -> DecodeCore:
    rule = PromptsFirst(target_tokens, max_num_seqs) if whole else FillToTarget(target_tokens)
    return DecodeCore(DecodeSettings(num_blocks, 4, max_num_seqs, 1, batching=rule), EXPORT)


def spec_of(task_id: TaskId, num_prompt: int, max_tokens: int = 9) -> SequenceSpec:
    first = 1000 * sum(task_id.encode())
    prompt = tuple(range(first, first + num_prompt))
    return SequenceSpec(prompt, (), SamplingParams(), StopParams(max_tokens))


def admit(core: DecodeCore, task_id: TaskId, num_prompt: int, num_blocks: int) -> None:
    command = AdmitPrompt(task_id, spec_of(task_id, num_prompt), num_blocks)
    assert core.handle(CommandArrived(SESSION, command)) == []
    core.check_invariants()


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def step(core: DecodeCore, finish: str | None = None) -> tuple[StepPlan, list[WorkerAction]]:
    actions, plan = core.plan(0.0)
    assert plan is not None
    sampling = (chunk for chunk in plan.chunks if chunk.samples)
    outputs = tuple(SampledOutput(c.slot, 8, "y", finish_reason=finish) for c in sampling)
    actions = actions + core.handle(StepFinished(outputs))
    core.check_invariants()
    return plan, actions


def sizes(plan: StepPlan) -> list[tuple[int, int, bool]]:
    return [(chunk.start, chunk.num_tokens, chunk.samples) for chunk in plan.chunks]


def test_a_prompt_is_computed_in_chunks_and_answered_in_the_same_blocks() -> None:
    core = new_core()
    admit(core, A, num_prompt=10, num_blocks=4)
    assert core.load.num_backlog_tokens == 10
    plan, actions = step(core)
    assert sizes(plan) == [(0, 8, False)]
    assert reports(actions) == [PrefillStarted(A, 0)]
    plan, actions = step(core)
    assert sizes(plan) == [(8, 2, True)]
    assert TokensEmitted(A, 0, (8,), "y") in reports(actions)
    assert core.load.num_backlog_tokens == 0
    plan, actions = step(core)
    assert sizes(plan) == [(10, 1, True)]
    assert TokensEmitted(A, 1, (8,), "y") in reports(actions)
    loads = [action for action in actions if isinstance(action, LoadSequence | DropSequence)]
    assert not loads, "it stays in its slot"
    assert core.pool.num_blocks_of(A) == 4


def test_answers_come_first_and_prompts_fill_the_rest_of_the_iteration() -> None:
    core = new_core()
    admit(core, A, num_prompt=6, num_blocks=4)
    step(core)
    admit(core, B, num_prompt=20, num_blocks=6)
    plan, _ = step(core)
    assert sizes(plan) == [(6, 1, True), (0, 7, False)]
    assert plan.num_tokens == 8


def test_a_rule_may_let_answers_wait_for_prompts() -> None:
    core = new_core(whole=True)
    admit(core, A, num_prompt=6, num_blocks=4)
    step(core)
    admit(core, B, num_prompt=5, num_blocks=4)
    plan, _ = step(core)
    assert sizes(plan) == [(0, 5, True)]
    plan, _ = step(core)
    assert sizes(plan) == [(6, 1, True), (5, 1, True)]


def test_a_prompt_that_ends_with_its_first_token_gives_all_back() -> None:
    core = new_core()
    admit(core, A, num_prompt=6, num_blocks=4)
    _, actions = step(core, finish="stop")
    assert reports(actions)[-1] == TaskReleased(A)
    assert core.num_tasks == 0
    assert core.pool.num_free_blocks == 16


def test_a_prompt_waits_for_blocks_and_is_not_lost() -> None:
    core = new_core(num_blocks=6)
    admit(core, A, num_prompt=6, num_blocks=4)
    admit(core, B, num_prompt=6, num_blocks=4)
    plan, _ = step(core)
    assert len(plan.chunks) == 1
    step(core, finish="stop")
    plan, actions = step(core)
    assert sizes(plan) == [(0, 6, True)]
    assert PrefillStarted(B, 0) in reports(actions)


def test_prompts_that_begin_alike_are_computed_once() -> None:
    core = new_core(target_tokens=16)
    shared = spec_of(A, 9)
    for task_id in (A, B):
        command = AdmitPrompt(task_id, shared, 4)
        core.handle(CommandArrived(SESSION, command))
    plan, _ = step(core)
    assert sizes(plan) == [(0, 9, True)], "the other waits for what this one computes"
    plan, actions = step(core)
    assert sizes(plan) == [(9, 1, True), (8, 1, True)]
    assert PrefillStarted(B, 8) in reports(actions)


def test_a_cancelled_prompt_gives_back_slot_and_blocks_in_every_state() -> None:
    core = new_core(max_num_seqs=1)
    admit(core, A, num_prompt=12, num_blocks=4)
    admit(core, B, num_prompt=4, num_blocks=2)
    step(core)
    for task_id in (A, B):
        actions = core.handle(CommandArrived(SESSION, CancelTask(task_id, "left")))
        assert reports(actions) == [TaskReleased(task_id)]
        core.check_invariants()
    assert core.pool.num_free_blocks == 16
    assert core.load.num_backlog_tokens == 0
    assert core.plan(0.0)[1] is None


def test_a_lost_session_takes_its_prompts_with_it() -> None:
    core = new_core()
    admit(core, A, num_prompt=12, num_blocks=4)
    admit(core, B, num_prompt=4, num_blocks=2)
    step(core)
    core.handle(SessionLost(SESSION))
    assert core.num_tasks == 0
    core.check_invariants()


def test_a_failed_step_fails_prompts_and_answers_of_it() -> None:
    core = new_core()
    admit(core, A, num_prompt=6, num_blocks=4)
    step(core)
    admit(core, B, num_prompt=12, num_blocks=4)
    admit(core, C, num_prompt=4, num_blocks=2)
    core.plan(0.0)
    actions = core.handle(StepFailed("broken"))
    failed = [report for report in reports(actions) if isinstance(report, TaskFailed)]
    assert [report.task_id for report in failed] == [A, B], "C was not in the iteration"
    core.check_invariants()
    plan, _ = step(core)
    assert sizes(plan) == [(0, 4, True)]


def test_a_repeated_command_changes_nothing() -> None:
    core = new_core()
    admit(core, A, num_prompt=12, num_blocks=4)
    step(core)
    admit(core, A, num_prompt=12, num_blocks=4)
    plan, _ = step(core)
    assert sizes(plan) == [(8, 4, True)]


def test_passes_one_after_the_other_are_each_as_long_as_a_single_gap_may_be() -> None:
    model = BatchTime(fixed_s=0.01, bends=((0, 1e-4),))
    settings = DecodeSettings(512, 4, 4, 1, batching=DeadlineFill(model, 4096))
    core = DecodeCore(settings, EXPORT)
    answer = replace(spec_of(A, 4), tpot_s=0.1, tbt_s=0.1)
    core.handle(CommandArrived(SESSION, AdmitPrompt(A, answer, 4)))
    now, told_at_s = 0.0, []
    for _ in range(3):
        _, plan = core.plan(now)
        assert plan is not None
        now += model.seconds(shape_of(plan.chunks))
        told_at_s.append(now)
        sampling = [chunk.slot for chunk in plan.chunks if chunk.samples]
        core.handle(StepFinished(tuple(SampledOutput(slot, 8, "y") for slot in sampling)))
        if len(told_at_s) == 1:  # more than two passes can hold beside the answer
            admit(core, B, num_prompt=1900, num_blocks=480)
    gaps_s = [later - earlier for earlier, later in pairwise(told_at_s)]
    assert all(0.09 < gap_s <= 0.1 for gap_s in gaps_s), gaps_s
