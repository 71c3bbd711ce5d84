"""What a prefill worker shares, what it waits for, and what it must compute all the same."""

from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.messages import (
    CancelTask,
    KvPushed,
    PrefillStarted,
    PushTo,
    Report,
    SequenceSpec,
    StartPrefill,
    TaskFailed,
)
from scheduling.prefix_index import PrefixChanges
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    LoadSequence,
    Push,
    PushFinished,
    SampledOutput,
    SendReport,
    SessionId,
    StepFailed,
    StepFinished,
    TellPrefixes,
    WorkerAction,
)

SESSION = SessionId(1)
A, B, C = TaskId("a/0"), TaskId("b/0"), TaskId("c/0")


def new_core(num_blocks: int = 12, max_num_batched_tokens: int = 8) -> PrefillCore:
    return PrefillCore(PrefillSettings(num_blocks, 4, 4, max_num_batched_tokens))


def spec_of(tokens: tuple[int, ...], salt: str = "", **sampling: int) -> SequenceSpec:
    return SequenceSpec(tokens, (), SamplingParams(**sampling), StopParams(5), salt)  # type: ignore[arg-type]


def target_of(first: int, num_blocks: int, name: str = "x") -> KvTarget:
    export = KvExport("loopback", "a", 99, 64, WorkerId("decode-0"), Incarnation(1), "h")
    blocks = tuple(BlockId(20 + number) for number in range(num_blocks))
    return KvTarget(name, export, blocks, tuple(Generation(1) for _ in blocks), first)


def start(core: PrefillCore, task_id: TaskId, spec: SequenceSpec) -> None:
    core.handle(CommandArrived(SESSION, StartPrefill(task_id, spec)))


def step(core: PrefillCore) -> tuple[StepPlan | None, list[WorkerAction]]:
    actions, plan = core.plan(0.0)
    core.check_invariants()
    if plan is not None:
        sampled = tuple(SampledOutput(c.slot, 42, "x") for c in plan.chunks if c.samples)
        actions = actions + core.handle(StepFinished(sampled))
        core.check_invariants()
    return plan, actions


def chunks(plan: StepPlan | None) -> list[tuple[int, int]]:
    return [] if plan is None else [(c.start, c.num_tokens) for c in plan.chunks]


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def compute(core: PrefillCore, task_id: TaskId, spec: SequenceSpec) -> None:
    """The whole prompt, and away with it: what stays is cached."""
    start(core, task_id, spec)
    while step(core)[0] is not None:
        pass
    core.handle(CommandArrived(SESSION, CancelTask(task_id, "done")))
    assert core.pool.num_free_blocks == core.pool.num_blocks


def test_a_cached_beginning_is_skipped_and_the_last_token_never_is() -> None:
    core = new_core()
    compute(core, A, spec_of(tuple(range(12))))
    start(core, B, spec_of(tuple(range(12))))
    plan, actions = step(core)
    assert chunks(plan) == [(8, 4)]
    assert PrefillStarted(B, 8) in reports(actions)
    (load,) = [action for action in actions if isinstance(action, LoadSequence)]
    assert len(load.start.block_table) == 3
    start(core, C, spec_of((*range(6), 99)))
    assert chunks(step(core)[0]) == [(4, 3)]


def test_another_salt_shares_nothing() -> None:
    core = new_core()
    compute(core, A, spec_of(tuple(range(7))))
    start(core, B, spec_of(tuple(range(7)), salt="mine"))
    assert chunks(step(core)[0]) == [(0, 7)]


def test_who_wants_the_logits_of_the_prompt_computes_all_of_it() -> None:
    core = new_core()
    compute(core, A, spec_of(tuple(range(7))))
    start(core, B, spec_of(tuple(range(7)), num_prompt_logprobs=1))
    assert chunks(step(core)[0]) == [(0, 7)]


def test_without_prefix_caching_nothing_is_kept() -> None:
    core = PrefillCore(PrefillSettings(12, 4, 4, 8, prefix_caching=False))
    compute(core, A, spec_of(tuple(range(7))))
    start(core, B, spec_of(tuple(range(7))))
    assert chunks(step(core)[0]) == [(0, 7)]
    assert core.pool.num_cached_blocks == 0


def test_a_prompt_waits_for_what_another_computes_and_may_be_passed() -> None:
    core = new_core()
    start(core, A, spec_of(tuple(range(14))))
    start(core, B, spec_of((*range(12), 70)))
    start(core, C, spec_of((80, 81)))
    assert chunks(step(core)[0]) == [(0, 8)]
    plan, actions = step(core)
    assert chunks(plan) == [(8, 6), (0, 2)], "a fills all but two tokens, which are c's"
    assert PrefillStarted(B) not in reports(actions)
    assert chunks(step(core)[0]) == [(12, 1)], "the first three blocks are a's"


def test_when_the_prompt_that_is_waited_for_ends_the_next_one_computes() -> None:
    core = new_core()
    start(core, A, spec_of(tuple(range(14))))
    start(core, B, spec_of((*range(12), 70)))
    step(core)
    core.handle(CommandArrived(SESSION, CancelTask(A, "left")))
    assert chunks(step(core)[0]) == [(8, 5)], "two blocks of a's are there"


def test_nobody_waits_for_a_block_that_it_could_not_share() -> None:
    core = new_core(max_num_batched_tokens=6)
    start(core, A, spec_of(tuple(range(8))))
    start(core, B, spec_of(tuple(range(4))))
    assert chunks(step(core)[0]) == [(0, 6)]
    assert chunks(step(core)[0]) == [(6, 2), (0, 4)], "its one block holds its last token"


def test_only_what_the_target_lacks_is_pushed_as_soon_as_the_prompt_starts() -> None:
    core = new_core()
    compute(core, A, spec_of(tuple(range(12))))
    start(core, B, spec_of((*range(12), 70)))
    core.handle(CommandArrived(SESSION, PushTo(B, target_of(1, 3))))
    _, actions = step(core)
    pushes = [action for action in actions if isinstance(action, Push)]
    assert [(push.first_index, len(push.block_ids)) for push in pushes] == [(0, 2), (2, 1)]
    assert pushes[0].block_ids == core.pool.blocks_of(B)[1:3]
    for push in pushes:
        done = core.handle(PushFinished(B, len(push.block_ids), 64, 0.0))
    assert reports(done)[0] == KvPushed(B, 3, 128, 0.0, "loopback")


def test_a_target_that_lacks_nothing_is_served_at_once() -> None:
    core = new_core()
    start(core, A, spec_of(tuple(range(8))))
    core.handle(CommandArrived(SESSION, PushTo(A, target_of(2, 0))))
    _, actions = step(core)
    assert [r.num_blocks for r in reports(actions) if isinstance(r, KvPushed)] == [0]
    assert core.num_tasks == 0


def test_a_target_beyond_the_sequence_fails_its_task_and_nothing_else() -> None:
    core = new_core()
    start(core, A, spec_of(tuple(range(8))))
    (failed, _) = reports(core.handle(CommandArrived(SESSION, PushTo(A, target_of(1, 2)))))
    assert isinstance(failed, TaskFailed)
    assert core.num_tasks == 0


def test_a_shared_block_is_kept_as_long_as_any_push_reads_it() -> None:
    core = new_core(num_blocks=5)
    start(core, A, spec_of(tuple(range(5))))
    core.handle(CommandArrived(SESSION, PushTo(A, target_of(0, 2, "a"))))
    step(core)
    start(core, B, spec_of((*range(4), 60)))
    core.handle(CommandArrived(SESSION, PushTo(B, target_of(0, 2, "b"))))
    step(core)
    assert core.pool.num_free_blocks == 2, "one block is both's"
    core.handle(PushFinished(A, 2, 64, 0.0))
    start(core, C, spec_of(tuple(range(100, 116))))
    assert step(core)[0] is None, "b's push still reads the shared block"
    core.handle(PushFinished(B, 1, 64, 0.0))
    core.handle(PushFinished(B, 1, 64, 0.0))
    assert chunks(step(core)[0]) == [(0, 8)]


def test_kv_of_a_failed_step_is_not_shared() -> None:
    core = new_core()
    start(core, A, spec_of(tuple(range(12))))
    step(core)
    assert core.pool.num_cached_blocks == 2
    core.plan(0.0)
    core.handle(StepFailed("not finite"))
    assert core.pool.num_cached_blocks == 0


def test_what_comes_and_goes_is_told() -> None:
    core = new_core(num_blocks=3)
    start(core, A, spec_of(tuple(range(9))))
    told = [a.changes for a in step(core)[1] if isinstance(a, TellPrefixes)]
    assert [(len(t.added), len(t.removed)) for t in told] == [(2, 0)]
    core.handle(CommandArrived(SESSION, CancelTask(A, "done")))
    start(core, B, spec_of(tuple(range(50, 57))))
    evicted, computed = (a.changes for a in step(core)[1] if isinstance(a, TellPrefixes))
    assert evicted == PrefixChanges(removed=told[0].added[1:])
    assert len(computed.added) == 1
