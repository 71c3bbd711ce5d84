"""Answers whose tokens are only counted: long plans, and a word where one is needed."""

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
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
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    KvArrived,
    SampledOutput,
    SendReport,
    SessionId,
    StepFinished,
    WorkerAction,
)

EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("decode-0"), Incarnation(1), "h")
FIRST, SECOND = TaskId("first/0"), TaskId("second/0")


def new_core(max_untold_tokens: int = 1000) -> DecodeCore:
    settings = DecodeSettings(
        num_blocks=100,
        block_size=4,
        max_num_seqs=4,
        prefix_caching=False,
        max_untold_tokens=max_untold_tokens,
    )
    return DecodeCore(settings, EXPORT)


def send(core: DecodeCore, command: Command) -> list[Report]:
    return reports(core.handle(CommandArrived(SessionId(1), command)))


def run(core: DecodeCore, task_id: TaskId, num_blocks: int, max_tokens: int) -> None:
    """Three tokens of prompt and one of the answer, in the first block."""
    spec = SequenceSpec((1, 2, 3), (), SamplingParams(), StopParams(max_tokens))
    send(core, AdmitGeneration(task_id, spec, num_blocks, 1, f"{task_id}@d"))
    send(core, StartDecode(task_id, (7,)))
    core.handle(KvArrived(task_id))


def plan_of(core: DecodeCore) -> StepPlan:
    _, plan = core.plan(0.0)
    assert plan is not None
    core.check_invariants()
    return plan


def finish(core: DecodeCore, num_steps: int, *outputs: SampledOutput) -> list[Report]:
    told = reports(core.handle(StepFinished(outputs, num_steps=num_steps)))
    core.check_invariants()
    return told


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def test_a_plan_lasts_until_the_first_answer_should_ask_for_blocks() -> None:
    core = new_core()
    run(core, FIRST, num_blocks=5, max_tokens=40)
    run(core, SECOND, num_blocks=9, max_tokens=40)
    plan = plan_of(core)
    assert plan.counted is not None
    assert (set(plan.counted.slots), plan.counted.num_context_tokens) == ({0, 1}, 8)
    # With 17 tokens the first has one block left: it asks.
    assert (plan.chunks, plan.num_steps, plan.num_tokens) == ((), 13, 2)
    assert finish(core, 13) == [GrowthNeeded(FIRST, 4)]


def test_a_plan_may_end_earlier_and_goes_on_where_it_ended() -> None:
    core = new_core()
    run(core, FIRST, num_blocks=5, max_tokens=40)
    plan_of(core)
    assert finish(core, 5) == []
    plan = plan_of(core)
    assert plan.counted is not None
    assert (plan.counted.num_context_tokens, plan.num_steps) == (9, 8)


def test_all_tokens_are_told_with_the_last_one() -> None:
    core = new_core()
    run(core, FIRST, num_blocks=9, max_tokens=40)
    plan_of(core)
    told = finish(core, 6, SampledOutput(0, 5, "end", finish_reason="stop"))
    assert told[0] == TokensEmitted(FIRST, 1, (0, 0, 0, 0, 0, 5), "end", (), "stop")
    assert told[1] == TaskReleased(FIRST)


def test_an_answer_that_has_no_room_is_told_of_and_joins_again_with_blocks() -> None:
    core = new_core()
    run(core, FIRST, num_blocks=2, max_tokens=40)
    plan_of(core)
    assert finish(core, 1) == [GrowthNeeded(FIRST, 4)]
    assert plan_of(core).num_steps == 4
    assert finish(core, 4) == [TokensEmitted(FIRST, 1, (0,) * 5, "")]
    assert core.plan(0.0)[1] is None, "it waits for blocks"
    send(core, GrantGrowth(FIRST, 4))
    assert plan_of(core).num_steps == 12


def test_an_answer_is_told_of_after_so_many_tokens() -> None:
    core = new_core(max_untold_tokens=3)
    run(core, FIRST, num_blocks=20, max_tokens=40)
    assert plan_of(core).num_steps == 3
    assert finish(core, 3) == [TokensEmitted(FIRST, 1, (0, 0, 0), "")]
    assert plan_of(core).num_steps == 3


def test_a_cancelled_answer_leaves_the_others_as_they_were() -> None:
    core = new_core()
    run(core, FIRST, num_blocks=9, max_tokens=40)
    run(core, SECOND, num_blocks=9, max_tokens=40)
    plan_of(core)
    finish(core, 4)
    assert send(core, CancelTask(FIRST, "left")) == [
        TokensEmitted(FIRST, 1, (0, 0, 0, 0), ""),
        TaskReleased(FIRST),
    ]
    plan = plan_of(core)
    assert plan.counted is not None
    assert (set(plan.counted.slots), plan.counted.num_context_tokens) == ({1}, 8)
