"""Answers on a mixed worker that outgrow their room while no block is left: they wait again."""

from router.events import Action, CallerLeft, ExtensionAnswered
from router.in_place_testing import (
    MIXED,
    answer,
    ask,
    compute,
    end,
    extensions,
    new_core,
    running,
    task_of,
)
from router.testing import (
    CoreUnderTest,
    assert_empty,
    commands,
    tokens,
)
from scheduling.block_leases import BlocksInherited
from scheduling.ids import RequestId, WorkerId
from scheduling.lifecycle import Phase
from scheduling.messages import (
    BlocksRefused,
    CancelTask,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    StartDecode,
    TaskReleased,
)
from scheduling.prediction import ResponseLength


def outgrow(core: CoreUnderTest, name: str, num_tokens: int) -> list[Action]:
    """It was predicted to be so long, and is refused more room: its worker keeps its KV."""
    task = task_of(core, name)
    sequence = core.core.state.sequence_by_task[task]
    num_heard = len(sequence.output_token_ids)
    core.report(MIXED, tokens(task, num_heard, *range(num_heard, num_tokens)))
    answer(core, core.report(MIXED, GrowthNeeded(task, 1)), granted=False)
    return core.report(MIXED, Preempted(task, keeps_kv=True))


def predicted(core: CoreUnderTest, name: str, num_tokens: int) -> None:
    """So long it is predicted to be; when asked again, as long as its caller allows."""
    sequence = core.core.state.sequence_by_task[task_of(core, name)]
    sequence.predicted = ResponseLength(num_tokens, num_tokens)


# PAPERS 1.4.3 (1.2g, step 2): predicted anew, and early in line, as it holds much.
def test_an_answer_that_outgrew_its_room_waits_in_line_by_what_it_holds() -> None:
    core = new_core(num_blocks=40)
    running(core, "first", 4, 80)
    ask(core, "a", 30, 40)
    predicted(core, "a", 10)
    actions = compute(core, "a")
    assert extensions(actions) == [("a", 2)]
    answer(core, actions)
    ask(core, "b", 4, 30)
    assert extensions(compute(core, "b")) == [], "it needs 8 more, and 4 are the prompts'"
    assert extensions(outgrow(core, "a", 11)) == []
    a, b = task_of(core, "a"), task_of(core, "b")
    sequence = core.core.state.sequence_by_task[a]
    assert sequence.phase is Phase.GENERATION_QUEUED
    assert sequence.num_response_tokens == 29, "of 40 at most it has 11"
    assert sequence.num_tries == 1, "nothing is computed again"
    assert list(core.core.state.answer_lines.in_order()) == [a, b]
    actions = end(core, "first")
    assert extensions(actions) == [("a", 8), ("b", 8)]
    told = commands(answer(core, actions))
    start = StartDecode(a, (1, *range(1, 11)))
    assert told[:2] == [(MIXED, GrantGrowth(a, 8)), (MIXED, start)]
    end(core, "a")
    end(core, "b")
    assert_empty(core)


def test_what_it_holds_is_no_part_of_the_reserve() -> None:
    core = new_core(num_blocks=32)
    running(core, "first", 4, 72)
    ask(core, "a", 10, 60)
    predicted(core, "a", 6)
    answer(core, compute(core, "a"))
    outgrow(core, "a", 7)
    # 19 and 4 of 32 blocks are taken, and it waits for 14 more.
    assert ask(core, "b", 16, 40), "its prompt is as large as the reserve"
    assert not ask(core, "c", 16, 40)


def test_one_that_still_borrows_is_nobody_elses_guest() -> None:
    core = new_core(policy="ecoserve")
    running(core, "first", 4, 92)
    ask(core, "a", 8, 33)
    predicted(core, "a", 24)
    compute(core, "a")
    core.report(MIXED, DecodeStarted(task_of(core, "a")))
    # 8 tokens are left of it: they would fit in front of what it borrows.
    assert commands(outgrow(core, "a", 25)) == []
    assert list(core.core.state.answer_lines.in_order()) == [task_of(core, "a")]


def test_one_that_still_borrows_keeps_what_it_inherits() -> None:
    core = new_core(policy="ecoserve")
    running(core, "first", 4, 92)
    ask(core, "a", 8, 60)
    predicted(core, "a", 24)
    ((_, start),) = commands(compute(core, "a"))
    task = task_of(core, "a")
    assert isinstance(start, StartDecode)
    assert start.place is not None
    core.report(MIXED, DecodeStarted(task))
    assert commands(outgrow(core, "a", 25)) == []
    assert list(core.core.state.answer_lines.in_order()) == [task]
    view = core.core.state.fleet.get(WorkerId(MIXED))
    assert view is not None
    assert view.num_due_blocks == 9, "17 for all of it; 2 are its own, and 6 are borrowed"
    # Its host meets it, and gets another block in that place.
    assert extensions(core.report(MIXED, BlocksInherited(task, 1))) == [("a", 1)]
    sequence = core.core.state.sequence_by_task[task]
    assert sequence.decode is not None
    assert (sequence.decode.num_blocks, sequence.decode.num_borrowed_blocks) == (3, 5)
    # With its host ends all borrowing: 8 blocks are its own, and 9 more are all that it can need.
    first = task_of(core, "first")
    last = tokens(first, 1, 9, finish="stop")
    actions = core.report(MIXED, BlocksInherited(task, 5), last, TaskReleased(first))
    assert extensions(actions) == [("a", 5), ("a", 9)]
    told = commands(core.tell(ExtensionAnswered(sequence.decode.claim, 9, granted=True)))
    assert [type(command) for _, command in told] == [GrantGrowth, StartDecode]
    end(core, "a")
    assert_empty(core)


def test_an_answer_that_outgrew_its_room_begins_in_the_middle_of_another() -> None:
    core = new_core(num_blocks=36, policy="ecoserve")
    ask(core, "a", 8, 40)
    predicted(core, "a", 4)
    answer(core, compute(core, "a"))
    running(core, "first", 4, 92)
    actions = outgrow(core, "a", 5)
    ((worker, start),) = commands(actions)
    assert worker == MIXED
    assert isinstance(start, StartDecode)
    assert start.place is not None
    assert start.place.host_id == task_of(core, "first")
    core.report(MIXED, DecodeStarted(task_of(core, "a")))
    sequence = core.core.state.sequence_by_task[task_of(core, "a")]
    assert sequence.phase is Phase.DECODING


def test_a_caller_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    core = new_core()
    ask(core, "a", 10, 60)
    predicted(core, "a", 6)
    answer(core, compute(core, "a"))
    running(core, "first", 4, 72)
    outgrow(core, "a", 7)
    task = task_of(core, "a")
    told = commands(core.tell(CallerLeft(RequestId("a"))))
    assert [type(command) for _, command in told] == [CancelTask]
    core.report(MIXED, TaskReleased(task))
    end(core, "first")
    assert_empty(core)


def test_a_worker_that_speaks_of_a_place_it_was_not_asked_for_is_not_believed() -> None:
    for wrong in (DecodeStarted, lambda task: BlocksRefused(task, 1)):
        core = new_core(policy="ecoserve")
        running(core, "first", 4, 92)
        ask(core, "a", 8, 60)
        predicted(core, "a", 24)
        compute(core, "a")
        task = task_of(core, "a")
        core.report(MIXED, DecodeStarted(task))
        outgrow(core, "a", 25)
        core.report(MIXED, wrong(task))
        assert task_of(core, "a") != task, "it costs the task a try"
