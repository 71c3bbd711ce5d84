"""What becomes of blocks that the ledger promised and the pool does not have yet."""

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.batch_time_recovery import Preemption
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    CancelTask,
    Command,
    GrantGrowth,
    GrowthNeeded,
    Report,
    SequenceSpec,
    StartDecode,
    SwappedOut,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CommandArrived,
    ExtendSequence,
    KvArrived,
    SampledOutput,
    SendReport,
    SessionId,
    StepFinished,
    WorkerAction,
)

EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("decode-0"), Incarnation(1), "h")
GROWING, OTHER, THIRD = TaskId("growing/0"), TaskId("other/0"), TaskId("third/0")


def new_core(num_blocks: int, growth_blocks: int = 1, num_swap_blocks: int = 0) -> DecodeCore:
    settings = DecodeSettings(
        num_blocks,
        block_size=4,
        max_num_seqs=4,
        growth_blocks=growth_blocks,
        prefix_caching=False,
        num_swap_blocks=num_swap_blocks,
        preemption=Preemption.SWAP,
    )
    return DecodeCore(settings, EXPORT)


def send(core: DecodeCore, command: Command) -> list[WorkerAction]:
    actions = core.handle(CommandArrived(SessionId(1), command))
    core.check_invariants()
    return actions


def run(core: DecodeCore, task_id: TaskId, num_blocks: int, max_tokens: int) -> None:
    """Three tokens of prompt in the first block."""
    spec = SequenceSpec((1, 2, 3), (), SamplingParams(), StopParams(max_tokens))
    send(core, AdmitGeneration(task_id, spec, num_blocks, 1, f"{task_id}@d"))
    send(core, StartDecode(task_id, (7,)))
    core.handle(KvArrived(task_id))


def step(core: DecodeCore) -> list[WorkerAction]:
    actions, plan = core.plan(0.0)
    if plan is not None:
        outputs = tuple(SampledOutput(c.slot, 8, "y") for c in plan.chunks)
        actions = actions + core.handle(StepFinished(outputs))
    core.check_invariants()
    return actions


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def asked(actions: list[WorkerAction]) -> list[Report]:
    return [report for report in reports(actions) if isinstance(report, GrowthNeeded)]


def gained(actions: list[WorkerAction]) -> list[int]:
    return [len(action.block_ids) for action in actions if isinstance(action, ExtendSequence)]


def test_a_promise_without_room_is_kept_and_not_asked_for_again() -> None:
    core = new_core(num_blocks=5)
    run(core, GROWING, num_blocks=1, max_tokens=12)
    run(core, OTHER, num_blocks=4, max_tokens=12)
    assert asked(step(core)) == [GrowthNeeded(GROWING, 1)]
    assert gained(send(core, GrantGrowth(GROWING, 1))) == []
    assert asked(step(core)) == []
    # What others let go of goes to the promise at once, before anything new can take it.
    assert gained(send(core, CancelTask(OTHER, "left"))) == [1]
    assert core.pool.num_blocks_of(GROWING) == 2


def test_however_often_others_come_and_go_as_much_is_promised_as_is_used() -> None:
    """Each release used to make it ask, and the ledger to book, once more for the same block."""
    core = new_core(num_blocks=6, growth_blocks=2)
    run(core, GROWING, num_blocks=1, max_tokens=20)
    run(core, OTHER, num_blocks=4, max_tokens=4)
    num_booked = 1
    for number in range(20):
        # One block is free at most, whenever it asks for two.
        come_and_go = TaskId(f"short-{number}/0")
        run(core, come_and_go, num_blocks=1, max_tokens=2)
        for report in asked(step(core)):
            if isinstance(report, GrowthNeeded) and report.task_id == GROWING:
                num_booked += report.num_blocks
                send(core, GrantGrowth(GROWING, report.num_blocks))
        send(core, CancelTask(come_and_go, "left"))
    send(core, CancelTask(OTHER, "left"))
    assert core.pool.num_blocks_of(GROWING) == num_booked <= 6


def test_a_promise_is_kept_in_parts_so_that_nobody_waits_for_the_last_block() -> None:
    core = new_core(num_blocks=6, growth_blocks=3)
    run(core, GROWING, num_blocks=1, max_tokens=14)
    run(core, OTHER, num_blocks=3, max_tokens=12)
    run(core, THIRD, num_blocks=1, max_tokens=1)
    assert GrowthNeeded(GROWING, 3) in asked(step(core))
    assert gained(send(core, GrantGrowth(GROWING, 3))) == [1]
    assert gained(send(core, CancelTask(THIRD, "left"))) == [1]
    assert gained(send(core, CancelTask(OTHER, "left"))) == [1]
    assert core.pool.num_blocks_of(GROWING) == 4


def test_promises_are_kept_in_the_order_in_which_the_sequences_joined() -> None:
    core = new_core(num_blocks=6)
    for task_id in (GROWING, OTHER):
        run(core, task_id, num_blocks=1, max_tokens=12)
    run(core, THIRD, num_blocks=4, max_tokens=12)
    step(core)
    send(core, GrantGrowth(OTHER, 1))
    send(core, GrantGrowth(GROWING, 1))
    extended = [a for a in send(core, CancelTask(THIRD, "left")) if isinstance(a, ExtendSequence)]
    assert [action.slot for action in extended] == [0, 1]


def test_a_sequence_that_makes_room_is_owed_nothing_more() -> None:
    """Its whole booking ends with SwappedOut, the promise included."""
    core = new_core(num_blocks=4, num_swap_blocks=8)
    for task_id in (GROWING, OTHER):
        run(core, task_id, num_blocks=2, max_tokens=13)
    while True:
        actions = step(core)
        swapped = [report for report in reports(actions) if isinstance(report, SwappedOut)]
        if swapped:
            break
        for report in asked(actions):
            send(core, GrantGrowth(report.task_id, 1))
    other = OTHER if swapped[0].task_id == GROWING else GROWING
    assert gained(actions) == [1], "the other's promise is kept with the room that was made"
    assert core.pool.num_blocks_of(swapped[0].task_id) == 0
    send(core, CancelTask(other, "left"))
    assert core.pool.num_blocks_of(swapped[0].task_id) == 0


def test_while_most_of_the_pool_is_free_an_answer_asks_for_more_at_a_time() -> None:
    settings = DecodeSettings(20, 4, 4, growth_blocks=1, roomy_growth_blocks=6)
    core = DecodeCore(settings, EXPORT)
    run(core, GROWING, 1, max_tokens=60)
    assert asked(step(core)) == [GrowthNeeded(GROWING, 6)]
    send(core, GrantGrowth(GROWING, 6))
    run(core, OTHER, 4, max_tokens=13)
    assert 4 * core.pool.num_free_blocks < 3 * core.pool.num_blocks
    more: list[Report] = []
    while not more:
        more = asked(step(core))
    assert more == [GrowthNeeded(GROWING, 1)]


def test_an_answer_that_does_not_grow_ahead_asks_when_it_has_no_room_and_goes_on_after() -> None:
    settings = DecodeSettings(8, 4, 4, growth_blocks=1, is_growing_ahead=False)
    core = DecodeCore(settings, EXPORT)
    run(core, GROWING, 1, max_tokens=20)
    # The fourth token's KV has the last place of the block; the next has none.
    assert asked(step(core)) == [GrowthNeeded(GROWING, 1)]
    _, plan = core.plan(0.0)
    assert plan is None
    send(core, GrantGrowth(GROWING, 1))
    assert gained(step(core)) or core.plan(0.0)[1] is not None
