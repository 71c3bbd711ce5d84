"""What a prefill worker does with prompts, targets, copies and cancels."""

from array import array

from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.messages import (
    AdmitGeneration,
    CancelTask,
    Command,
    KvPushed,
    PrefillStarted,
    PromptScored,
    PushTo,
    Report,
    SequenceSpec,
    StartPrefill,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import PromptLogprobs, SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CancelPush,
    CommandArrived,
    DropSequence,
    LoadSequence,
    Push,
    PushFinished,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFailed,
    StepFinished,
    WorkerAction,
)

SESSION = SessionId(1)
TASK = TaskId("r/0")


def new_core(num_blocks: int = 8, max_num_batched_tokens: int = 8) -> PrefillCore:
    return PrefillCore(PrefillSettings(num_blocks, 4, 4, max_num_batched_tokens))


def prompt_of(num_tokens: int, first: int = 0) -> SequenceSpec:
    tokens = tuple(range(first, first + num_tokens))
    return SequenceSpec(tokens, (), SamplingParams(), StopParams(5))


def target_of(num_blocks: int) -> KvTarget:
    export = KvExport("loopback", "a", 99, 64, WorkerId("decode-0"), Incarnation(1), "h")
    blocks = tuple(BlockId(10 + i) for i in range(num_blocks))
    return KvTarget("r/0@decode-0", export, blocks, tuple(Generation(1) for _ in blocks))


def send(core: PrefillCore, command: Command) -> list[WorkerAction]:
    return core.handle(CommandArrived(SESSION, command))


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def step(core: PrefillCore, finish: str | None = None) -> tuple[StepPlan, list[WorkerAction]]:
    actions, plan = core.plan(0.0)
    assert plan is not None
    outputs = tuple(
        SampledOutput(chunk.slot, 42, "x", finish_reason=finish)
        for chunk in plan.chunks
        if chunk.samples
    )
    done = core.handle(StepFinished(outputs))
    core.check_invariants()
    return plan, actions + done


def pushes(actions: list[WorkerAction]) -> list[Push]:
    return [action for action in actions if isinstance(action, Push)]


def test_full_blocks_are_pushed_while_the_prompt_is_still_being_computed() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(18)))
    send(core, PushTo(TASK, target_of(5)))
    _, first = step(core)
    assert [(p.first_index, len(p.block_ids)) for p in pushes(first)] == [(0, 2)]
    _, second = step(core)
    assert [(p.first_index, len(p.block_ids)) for p in pushes(second)] == [(2, 2)]
    _, last = step(core)
    assert [(p.first_index, len(p.block_ids)) for p in pushes(last)] == [(4, 1)]
    assert TokensEmitted(TASK, 0, (42,), "x") in reports(last)


def test_blocks_are_free_only_after_the_last_copy() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(6)))
    send(core, PushTo(TASK, target_of(2)))
    _, actions = step(core)
    assert core.pool.num_free_blocks == 6
    (push,) = pushes(actions)
    done = core.handle(PushFinished(TASK, len(push.block_ids), 128, 0.5))
    assert reports(done) == [KvPushed(TASK, 2, 128, 0.5, "loopback"), TaskReleased(TASK)]
    assert core.pool.num_free_blocks == 8
    assert core.num_tasks == 0


def test_without_a_target_the_kv_stays_parked_until_one_is_named() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(6)))
    _, actions = step(core)
    assert not pushes(actions)
    assert DropSequence(0) in actions, "a parked prompt needs no slot"
    assert core.pool.num_free_blocks == 6
    (push,) = pushes(send(core, PushTo(TASK, target_of(2))))
    assert (push.first_index, len(push.block_ids)) == (0, 2)


def test_a_budget_is_filled_in_order_with_one_prompt_left_partly_computed() -> None:
    core = new_core(max_num_batched_tokens=8)
    for number in range(3):
        send(core, StartPrefill(TaskId(f"r/{number}"), prompt_of(5, first=10 * number)))
    plan, _ = step(core)
    assert [(c.num_tokens, c.samples) for c in plan.chunks] == [(5, True), (3, False)]
    plan, _ = step(core)
    assert [(c.start, c.num_tokens, c.samples) for c in plan.chunks] == [(3, 2, True), (0, 5, True)]


def test_a_prompt_waits_for_blocks_and_keeps_its_place() -> None:
    core = new_core(num_blocks=3)
    send(core, StartPrefill(TaskId("a/0"), prompt_of(8)))
    send(core, StartPrefill(TaskId("b/0"), prompt_of(8, first=10)))
    send(core, StartPrefill(TaskId("c/0"), prompt_of(1)))
    step(core)
    assert core.plan(0.0)[1] is None, "the head of the queue is not overtaken"
    send(core, CancelTask(TaskId("a/0"), "gone"))
    actions, plan = core.plan(0.0)
    assert plan is not None
    assert PrefillStarted(TaskId("b/0")) in reports(actions)


def test_a_cancel_during_a_copy_waits_for_the_copy() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(12)))
    send(core, PushTo(TASK, target_of(3)))
    step(core)
    cancelled = send(core, CancelTask(TASK, "client left"))
    assert CancelPush(TASK, "r/0@decode-0") in cancelled
    assert not reports(cancelled)
    assert core.pool.num_free_blocks == 5, "a copy still reads them"
    assert send(core, CancelTask(TASK, "again")) == []
    done = core.handle(PushFinished(TASK, 0, 0, 0.0, "cancelled"))
    assert reports(done) == [TaskReleased(TASK)]
    assert core.pool.num_free_blocks == 8


def test_a_failed_copy_fails_the_task_and_frees_its_blocks() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(6)))
    send(core, PushTo(TASK, target_of(2)))
    step(core)
    done = core.handle(PushFinished(TASK, 0, 0, 0.0, "peer gone"))
    assert reports(done) == [
        TaskFailed(TASK, "transfer_failed", "peer gone"),
        TaskReleased(TASK),
    ]
    assert core.pool.num_free_blocks == 8


def test_an_answer_of_one_token_needs_no_decode_worker() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(3)))
    _, actions = step(core, finish="length")
    assert reports(actions)[-1] == TaskReleased(TASK)
    assert core.pool.num_free_blocks == 8


def test_a_failing_step_fails_its_tasks_and_the_worker_goes_on() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(3)))
    core.plan(0.0)
    actions = core.handle(StepFailed("boom"))
    assert reports(actions) == [TaskFailed(TASK, "internal", "boom"), TaskReleased(TASK)]
    send(core, StartPrefill(TaskId("next/0"), prompt_of(3)))
    assert core.plan(0.0)[1] is not None


def test_a_lost_router_takes_its_tasks_along_and_no_others() -> None:
    core = new_core()
    core.handle(CommandArrived(SessionId(1), StartPrefill(TaskId("a/0"), prompt_of(3))))
    core.handle(CommandArrived(SessionId(2), StartPrefill(TaskId("b/0"), prompt_of(3))))
    core.handle(SessionLost(SessionId(1)))
    assert core.num_tasks == 1
    assert core.load.num_backlog_tokens == 3


def test_repeated_and_foreign_commands_change_nothing() -> None:
    core = new_core()
    spec = prompt_of(3)
    send(core, StartPrefill(TASK, spec))
    assert send(core, StartPrefill(TASK, spec)) == []
    assert core.num_tasks == 1
    assert reports(send(core, CancelTask(TaskId("unknown/0"), "x"))) == [
        TaskReleased(TaskId("unknown/0"))
    ]
    (failed,) = reports(send(core, AdmitGeneration(TaskId("g/0"), spec, 1, 1, "t")))
    assert isinstance(failed, TaskFailed)


def test_a_sequence_with_output_is_computed_from_all_of_its_tokens() -> None:
    core = new_core()
    spec = SequenceSpec((1, 2, 3), (4, 5), SamplingParams(), StopParams(9))
    send(core, StartPrefill(TASK, spec))
    _, actions = step(core)
    (load,) = [a for a in actions if isinstance(a, LoadSequence)]
    assert load.start.token_ids == (1, 2, 3, 4, 5)
    assert load.start.num_prompt_tokens == 3
    assert TokensEmitted(TASK, 2, (42,), "x") in reports(actions)


def test_logprobs_of_the_prompt_are_reported_before_its_first_token() -> None:
    core = new_core()
    send(core, StartPrefill(TASK, prompt_of(12)))
    seen: list[Report] = []
    for first, end in ((1, 9), (9, 12)):
        actions, plan = core.plan(0.0)
        assert plan is not None
        (chunk,) = plan.chunks
        logprobs = PromptLogprobs(first, array("f", range(first, end)), array("I"), array("f"))
        outputs = (SampledOutput(chunk.slot, 42, "x"),) if chunk.samples else ()
        actions += core.handle(StepFinished(outputs, ((chunk.slot, logprobs),)))
        seen += reports(actions)
    assert [type(report) for report in seen] == [
        PrefillStarted,
        PromptScored,
        PromptScored,
        TokensEmitted,
    ]
    positions = [r.logprobs.first_token_index for r in seen if isinstance(r, PromptScored)]
    assert positions == [1, 9]
