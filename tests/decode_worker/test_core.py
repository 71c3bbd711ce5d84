"""What a decode worker does with arrivals, growth, crowding and cancels."""

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    BlocksGranted,
    BlocksRefused,
    CancelTask,
    Command,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    Report,
    SequenceSpec,
    StartDecode,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    AwaitKv,
    CommandArrived,
    ExpectKv,
    ExtendSequence,
    KvArrived,
    KvRefused,
    LoadSequence,
    QuarantineCleared,
    RevokeKv,
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
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("decode-0"), Incarnation(1), "h")


def new_core(num_blocks: int = 8, max_num_seqs: int = 4, growth_blocks: int = 1) -> DecodeCore:
    return DecodeCore(DecodeSettings(num_blocks, 4, max_num_seqs, growth_blocks), EXPORT)


def admit(task_id: TaskId, num_prompt: int, num_blocks: int, max_tokens: int) -> AdmitGeneration:
    # Every task has a prompt of its own; those that begin alike are in test_prefix_sharing.py.
    first = 0 if task_id == TASK else 1000 * sum(task_id.encode())
    prompt = tuple(range(first, first + num_prompt))
    spec = SequenceSpec(prompt, (), SamplingParams(), StopParams(max_tokens))
    return AdmitGeneration(task_id, spec, num_blocks, -(-num_prompt // 4), f"{task_id}@d")


def send(core: DecodeCore, command: Command) -> list[WorkerAction]:
    return core.handle(CommandArrived(SESSION, command))


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def run(
    core: DecodeCore, task_id: TaskId, num_prompt: int, num_blocks: int, max_tokens: int
) -> None:
    send(core, admit(task_id, num_prompt, num_blocks, max_tokens))
    send(core, StartDecode(task_id, (7,)))
    core.handle(KvArrived(task_id))


def step(core: DecodeCore, finish: str | None = None) -> tuple[StepPlan | None, list[WorkerAction]]:
    actions, plan = core.plan(0.0)
    if plan is not None:
        outputs = tuple(SampledOutput(c.slot, 8, "y", finish_reason=finish) for c in plan.chunks)
        actions = actions + core.handle(StepFinished(outputs))
    core.check_invariants()
    return plan, actions


def test_a_task_runs_only_when_its_kv_is_there() -> None:
    core = new_core()
    actions = send(core, admit(TASK, 6, 3, 9))
    (granted,) = reports(actions)
    assert isinstance(granted, BlocksGranted)
    assert actions[0] == ExpectKv(granted.target.block_ids, granted.target.generations)
    assert len(granted.target.block_ids) == 2, "only the prompt's blocks are filled from outside"
    assert core.plan(0.0)[1] is None
    (awaited,) = send(core, StartDecode(TASK, (7,)))
    assert awaited == AwaitKv(TASK, granted.target.block_ids, granted.target.generations)
    assert core.plan(0.0)[1] is None
    assert reports(core.handle(KvArrived(TASK))) == [DecodeStarted(TASK)]
    plan, actions = step(core)
    assert plan is not None
    assert [(c.start, c.num_tokens) for c in plan.chunks] == [(6, 1)]
    (load,) = [a for a in actions if isinstance(a, LoadSequence)]
    assert load.start.token_ids == (0, 1, 2, 3, 4, 5, 7)
    assert TokensEmitted(TASK, 1, (8,), "y") in reports(actions)


def test_what_does_not_fit_is_refused_whole() -> None:
    core = new_core(num_blocks=2)
    assert reports(send(core, admit(TASK, 6, 3, 9))) == [BlocksRefused(TASK, 2)]
    assert core.num_tasks == 0


def test_damaged_kv_makes_no_token_and_its_blocks_wait_in_quarantine() -> None:
    core = new_core()
    send(core, admit(TASK, 6, 3, 9))
    send(core, StartDecode(TASK, (7,)))
    actions = core.handle(KvRefused(TASK, "kv_corrupted", "bad"))
    assert reports(actions) == [TaskFailed(TASK, "kv_corrupted", "bad")]
    assert any(isinstance(a, RevokeKv) for a in actions)
    assert core.pool.num_free_blocks == 5, "a sender might still write"
    assert reports(core.handle(QuarantineCleared(TASK))) == [TaskReleased(TASK)]
    assert core.pool.num_free_blocks == 8
    assert core.handle(KvArrived(TASK)) == []


def test_a_cancel_before_the_kv_arrived_quarantines_and_one_after_frees_at_once() -> None:
    core = new_core()
    send(core, admit(TASK, 6, 3, 9))
    assert reports(send(core, CancelTask(TASK, "left"))) == []
    assert core.pool.num_free_blocks == 5
    assert reports(core.handle(QuarantineCleared(TASK))) == [TaskReleased(TASK)]
    run(core, TASK, 6, 3, 9)
    assert reports(send(core, CancelTask(TASK, "left"))) == [TaskReleased(TASK)]
    assert core.pool.num_free_blocks == 8


def test_blocks_are_asked_for_before_the_last_one_is_full() -> None:
    core = new_core()
    run(core, TASK, 3, 2, 20)
    _, actions = step(core)
    assert GrowthNeeded(TASK, 1) in reports(actions), "8 slots, 5 tokens: one block left"
    _, actions = step(core)
    assert not [r for r in reports(actions) if isinstance(r, GrowthNeeded)], "asked only once"
    (extended,) = send(core, GrantGrowth(TASK, 1))
    assert isinstance(extended, ExtendSequence)


def test_nothing_beyond_max_tokens_is_asked_for() -> None:
    core = new_core()
    run(core, TASK, 3, 2, 6)
    for _ in range(4):
        plan, actions = step(core)
        assert plan is not None
        assert not [r for r in reports(actions) if isinstance(r, GrowthNeeded)]


def test_when_nobody_can_go_on_the_cheapest_is_given_back_and_the_rest_asks_again() -> None:
    core = new_core(num_blocks=5)
    long, short = TaskId("long/0"), TaskId("short/0")
    run(core, long, 11, 3, 20)
    run(core, short, 7, 2, 20)
    seen: list[Report] = []
    for _ in range(4):
        _, actions = step(core)
        for report in reports(actions):
            seen.append(report)
            if isinstance(report, GrowthNeeded):
                num_blocks = min(1, core.pool.num_free_blocks)
                seen += reports(send(core, GrantGrowth(report.task_id, num_blocks)))
    assert Preempted(short) in seen
    assert Preempted(long) not in seen
    after = seen[seen.index(Preempted(short)) :]
    assert TaskReleased(short) in after
    assert GrowthNeeded(long, 1) in after


def test_a_starved_sequence_waits_while_others_run() -> None:
    core = new_core(num_blocks=5)
    stuck, fine = TaskId("stuck/0"), TaskId("fine/0")
    run(core, stuck, 3, 1, 20)
    run(core, fine, 3, 4, 12)
    for report in reports(step(core)[1]):
        if isinstance(report, GrowthNeeded):
            send(core, GrantGrowth(report.task_id, 0))
    plan, actions = step(core)
    assert plan is not None
    assert len(plan.chunks) == 1
    assert not [r for r in reports(actions) if isinstance(r, Preempted)]


def test_sequences_wait_for_a_slot_in_the_order_of_arrival() -> None:
    core = new_core(max_num_seqs=1)
    run(core, TaskId("a/0"), 3, 2, 5)
    run(core, TaskId("b/0"), 3, 2, 5)
    step(core, finish="stop")
    plan, actions = step(core)
    assert plan is not None
    (load,) = [a for a in actions if isinstance(a, LoadSequence)]
    assert load.start.slot == 0


def test_a_failing_step_fails_its_tasks_and_frees_their_blocks() -> None:
    core = new_core()
    run(core, TASK, 3, 2, 5)
    core.plan(0.0)
    actions = core.handle(StepFailed("boom"))
    assert reports(actions) == [TaskFailed(TASK, "internal", "boom"), TaskReleased(TASK)]
    assert core.pool.num_free_blocks == 8


def test_a_lost_router_takes_its_tasks_along() -> None:
    core = new_core()
    run(core, TASK, 3, 2, 5)
    send(core, admit(TaskId("waiting/0"), 3, 2, 5))
    core.handle(SessionLost(SESSION))
    core.handle(QuarantineCleared(TaskId("waiting/0")))
    assert core.num_tasks == 0
    assert core.pool.num_free_blocks == 8


def test_repeated_commands_change_nothing() -> None:
    core = new_core()
    send(core, admit(TASK, 3, 2, 5))
    assert send(core, admit(TASK, 3, 2, 5)) == []
    send(core, StartDecode(TASK, (7,)))
    assert send(core, StartDecode(TASK, (7,))) == []
    assert send(core, GrantGrowth(TASK, 3)) == []
    assert core.pool.num_free_blocks == 6


def test_a_ready_sequence_takes_the_slot_of_one_that_was_given_up_at_once() -> None:
    """Nothing else may happen on this worker: no event would call for another look."""
    core = new_core(num_blocks=4, max_num_seqs=1)
    run(core, TaskId("starved/0"), num_prompt=3, num_blocks=1, max_tokens=20)
    _, actions = step(core)
    assert GrowthNeeded(TaskId("starved/0"), 1) in reports(actions)
    send(core, GrantGrowth(TaskId("starved/0"), 0))
    run(core, TaskId("ready/0"), num_prompt=3, num_blocks=2, max_tokens=4)
    plan, actions = step(core)
    assert Preempted(TaskId("starved/0")) in reports(actions)
    assert plan is not None, "the ready sequence would wait for ever"
    assert any(
        isinstance(report, TokensEmitted) and report.task_id == "ready/0"
        for report in reports(actions)
    )


def test_a_task_left_over_from_a_broken_session_is_refused_and_not_forgotten() -> None:
    """A router that redials at once may admit it again before its blocks are out of quarantine."""
    core = new_core()
    core.handle(CommandArrived(SESSION, admit(TASK, 6, 2, 4)))
    core.handle(SessionLost(SESSION))
    again = CommandArrived(SessionId(2), admit(TASK, 6, 2, 4))
    refused = SendReport(SessionId(2), BlocksRefused(TASK, 6))
    assert core.handle(again) == [refused]
    core.handle(QuarantineCleared(TASK))
    granted = [a.report for a in core.handle(again) if isinstance(a, SendReport)]
    assert [type(report) for report in granted] == [BlocksGranted]
