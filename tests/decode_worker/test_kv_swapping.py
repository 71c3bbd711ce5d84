"""What a decode worker moves to host memory, when, and how it comes back."""

from math import inf
from typing import TypeVar

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.batch_time_recovery import Preemption
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    BlocksRefused,
    CancelTask,
    Command,
    DecodeStarted,
    GrantGrowth,
    Preempted,
    Report,
    ResumeGeneration,
    SequenceSpec,
    StartDecode,
    SwappedOut,
    TaskReleased,
    TokensEmitted,
)
from scheduling.parked_due import MAX_OVERTAKEN_S
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CommandArrived,
    KvArrived,
    LoadSequence,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFailed,
    StepFinished,
    SwapIn,
    SwapOut,
    WorkerAction,
)

T = TypeVar("T")
SESSION = SessionId(1)
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("decode-0"), Incarnation(1), "h")
SHORT, LONG = TaskId("short/0"), TaskId("long/0")


def new_core(
    num_swap_blocks: int,
    preemption: Preemption = Preemption.FIRST,
    num_blocks: int = 6,
    *,
    prefix_caching: bool = True,
    parked_yields: bool = False,
) -> DecodeCore:
    settings = DecodeSettings(
        num_blocks,
        4,
        4,
        growth_blocks=1,
        prefix_caching=prefix_caching,
        num_swap_blocks=num_swap_blocks,
        preemption=preemption,
        parked_yields=parked_yields,
    )
    return DecodeCore(settings, EXPORT)


def send(core: DecodeCore, command: Command) -> list[WorkerAction]:
    actions = core.handle(CommandArrived(SESSION, command))
    core.check_invariants()
    return actions


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def of_type(actions: list[WorkerAction], wanted: type[T]) -> list[T]:
    return [action for action in actions if isinstance(action, wanted)]


def begin(
    core: DecodeCore,
    task_id: TaskId,
    prompt: tuple[int, ...],
    max_tokens: int = 9,
    tbt_s: float = inf,
) -> None:
    """Exactly the blocks that the KV of prompt and first token needs."""
    spec = SequenceSpec(prompt, (), SamplingParams(), StopParams(max_tokens), tbt_s=tbt_s)
    num_blocks = -(-len(prompt) // 4)
    send(core, AdmitGeneration(task_id, spec, num_blocks, num_blocks, f"{task_id}@d"))
    send(core, StartDecode(task_id, (7,)))
    core.handle(KvArrived(task_id))


def deny_all(core: DecodeCore) -> list[WorkerAction]:
    """Answer every growth request with no until somebody makes room."""
    seen: list[WorkerAction] = []
    for _ in range(8):
        actions, plan = core.plan(0.0)
        seen += actions
        core.check_invariants()
        if any(isinstance(report, SwappedOut | Preempted) for report in reports(seen)):
            return seen
        assert plan is None
        for report in reports(actions):
            if type(report).__name__ == "GrowthNeeded":
                seen += send(core, GrantGrowth(report.task_id, 0))
    raise AssertionError("nobody makes room")


def crowded(
    core: DecodeCore, short: int = 8, long: int = 16, tbt_s: float = inf
) -> list[WorkerAction]:
    """Two sequences fill the pool, and neither gets more."""
    begin(core, LONG, tuple(range(100, 100 + long)))
    begin(core, SHORT, tuple(range(200, 200 + short)), tbt_s=tbt_s)
    return deny_all(core)


def test_the_cheapest_of_those_that_starve_moves_to_host_memory_and_frees_its_blocks() -> None:
    core = new_core(num_swap_blocks=10)
    actions = crowded(core)
    (out,) = of_type(actions, SwapOut)
    assert len(out.block_ids) == len(out.swap_block_ids) == 2
    assert SwappedOut(SHORT, 2) in reports(actions)
    assert not [r for r in reports(actions) if isinstance(r, Preempted | TaskReleased)]
    assert core.pool.num_free_blocks == 2
    assert (core.load.num_parked, core.load.num_tasks) == (1, 2)


def test_a_resumed_task_gets_its_blocks_back_before_it_is_loaded_and_goes_on() -> None:
    core = new_core(num_swap_blocks=10, prefix_caching=False)
    (out,) = of_type(crowded(core), SwapOut)
    send(core, CancelTask(LONG, "left"))
    actions = send(core, ResumeGeneration(SHORT, 4))
    (swap_in,) = of_type(actions, SwapIn)
    assert swap_in.swap_block_ids == out.swap_block_ids
    assert reports(actions) == [DecodeStarted(SHORT)]
    assert core.pool.num_blocks_of(SHORT) == 4
    actions, plan = core.plan(0.0)
    (load,) = of_type(actions, LoadSequence)
    assert load.start.block_table[:2] == swap_in.block_ids
    assert load.start.token_ids == (*range(200, 208), 7)
    assert plan is not None
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.chunks] == [(8, 1)]
    assert core.load.num_parked == 0
    (chunk,) = plan.chunks
    done = core.handle(StepFinished((SampledOutput(chunk.slot, 9, "y"),)))
    assert TokensEmitted(SHORT, 1, (9,), "y") in reports(done)
    core.check_invariants()


def test_blocks_that_are_still_cached_on_the_device_are_not_copied_back() -> None:
    core = new_core(num_swap_blocks=10)
    crowded(core)
    # Nothing else has needed the room since.
    (swap_in,) = of_type(send(core, ResumeGeneration(SHORT, 2)), SwapIn)
    assert swap_in == SwapIn((), ())
    assert core.pool.num_blocks_of(SHORT) == 2


def test_a_block_that_others_hold_is_looked_up_and_not_copied_back() -> None:
    core = new_core(num_swap_blocks=10, num_blocks=5)
    begin(core, LONG, tuple(range(16)))
    begin(core, SHORT, (*range(4), 50, 51, 52, 53))
    (out,) = of_type(deny_all(core), SwapOut)
    assert len(out.block_ids) == 2
    first = core.pool.blocks_of(LONG)[0]
    assert out.block_ids[0] == first
    begin(core, TaskId("fill/0"), (90, 91, 92, 93))
    send(core, CancelTask(TaskId("fill/0"), "left"))
    (swap_in,) = of_type(send(core, ResumeGeneration(SHORT, 2)), SwapIn)
    assert swap_in.swap_block_ids == out.swap_block_ids[1:]
    assert core.pool.blocks_of(SHORT)[0] == first


def test_parked_sequences_that_begin_alike_share_one_copy_of_their_beginning() -> None:
    core = new_core(num_swap_blocks=3, num_blocks=3)
    begin(core, TaskId("a/0"), (*range(4), 50, 51, 52, 53), max_tokens=2)
    begin(core, TaskId("b/0"), (*range(4), 60, 61, 62, 63), max_tokens=2)
    (first,) = of_type(deny_all(core), SwapOut)
    last_of_b = core.pool.blocks_of(TaskId("b/0"))[1]
    send(core, GrantGrowth(TaskId("b/0"), 0))
    (second,) = of_type(core.plan(0.0)[0], SwapOut)
    assert (len(first.block_ids), second.block_ids) == (2, (last_of_b,))


def test_a_resume_without_room_is_refused_and_may_be_tried_again() -> None:
    core = new_core(num_swap_blocks=10)
    crowded(core)
    assert reports(send(core, ResumeGeneration(SHORT, 4))) == [BlocksRefused(SHORT, 2)]
    assert core.load.num_parked == 1
    send(core, CancelTask(LONG, "left"))
    assert reports(send(core, ResumeGeneration(SHORT, 4))) == [DecodeStarted(SHORT)]
    assert send(core, ResumeGeneration(SHORT, 4)) == [], "it runs already"


def test_what_host_memory_has_no_room_for_is_given_up() -> None:
    core = new_core(num_swap_blocks=1)
    actions = crowded(core)
    assert Preempted(SHORT) in reports(actions)
    assert of_type(actions, SwapOut) == []
    assert core.load.num_parked == 0


def test_swap_looks_for_one_that_fits_where_first_gives_the_cheapest_up() -> None:
    def who(preemption: Preemption) -> list[Report]:
        core = new_core(10, preemption)
        begin(core, LONG, tuple(range(100, 116)), max_tokens=8)
        # 25 tokens in the end, and the pool holds 24.
        begin(core, SHORT, tuple(range(200, 208)), max_tokens=17)
        seen = reports(deny_all(core))
        return [report for report in seen if isinstance(report, SwappedOut | Preempted)]

    assert who(Preemption.SWAP) == [SwappedOut(LONG, 4)]
    assert who(Preemption.FIRST) == who(Preemption.RECOMPUTE) == [Preempted(SHORT)]


def test_a_parked_task_that_is_cancelled_or_whose_router_is_lost_frees_host_memory() -> None:
    for end in (CommandArrived(SESSION, CancelTask(SHORT, "left")), SessionLost(SESSION)):
        core = new_core(num_swap_blocks=2)
        crowded(core)
        assert (core.load.num_free_swap_blocks, core.load.num_swap_blocks) == (0, 2)
        actions = core.handle(end)
        core.check_invariants()
        assert TaskReleased(SHORT) in reports(actions)
        assert core.load.num_parked == 0
        assert core.load.num_free_swap_blocks == 2
        for task_id in (SHORT, LONG):
            send(core, CancelTask(task_id, "left"))
        assert core.pool.num_free_blocks == 6
        assert SwappedOut(SHORT, 0) in reports(crowded(core)), "the copy is still there"


def test_a_copy_of_kv_that_a_failed_step_used_is_not_taken_again() -> None:
    core = new_core(num_swap_blocks=10)
    crowded(core)
    send(core, CancelTask(LONG, "left"))
    send(core, ResumeGeneration(SHORT, 4))
    assert core.plan(0.0)[1] is not None
    core.handle(StepFailed("bad numbers"))
    core.check_invariants()
    assert SwappedOut(SHORT, 2) in reports(crowded(core))


def test_the_load_tells_when_what_is_parked_goes_before_newcomers() -> None:
    core = new_core(num_swap_blocks=10, parked_yields=True)
    assert core.load.parked_due_in_s is None
    crowded(core)  # without a goal
    assert core.load.parked_due_in_s == MAX_OVERTAKEN_S
    core.plan(now=7.0)
    assert core.load.parked_due_in_s == MAX_OVERTAKEN_S - 7.0, "however long it waits already"
    core.handle(CommandArrived(SESSION, CancelTask(TaskId("gone"), ""), at_s=9.0))
    assert core.load.parked_due_in_s == MAX_OVERTAKEN_S - 9.0, "though nothing was computed since"
    send(core, CancelTask(LONG, ""))
    send(core, ResumeGeneration(SHORT, 3))
    assert (core.load.num_parked, core.load.parked_due_in_s) == (0, None)


def test_who_minds_a_single_gap_gives_half_of_it_however_far_ahead_it_is() -> None:
    core = new_core(num_swap_blocks=10, parked_yields=True)
    crowded(core, tbt_s=0.5)
    assert core.load.parked_due_in_s == 0.25


def test_by_a_policy_where_what_is_parked_comes_first_the_load_tells_nothing() -> None:
    core = new_core(num_swap_blocks=10)
    crowded(core)
    assert (core.load.num_parked, core.load.parked_due_in_s) == (1, None)
