"""Prompts and answers get room apart on mixed workers: who waits where, what is booked."""

from collections.abc import Callable

import pytest

from router.events import (
    CallerLeft,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    TimeReached,
    WorkerConnected,
    WorkerLost,
)
from router.in_place_testing import (
    AT_ONCE,
    MIXED,
    answer,
    ask,
    compute,
    end,
    extensions,
    new_core,
    phase_of,
    running,
    task_of,
)
from router.testing import (
    PREFILL,
    CoreUnderTest,
    assert_empty,
    commands,
    hello_of,
    of_type,
    spec_of,
    target_on,
    tokens,
)
from scheduling.ids import Incarnation, RequestId, TaskId, WorkerId
from scheduling.lifecycle import Change, Phase
from scheduling.messages import (
    Admission,
    AdmitPrompt,
    BlocksGranted,
    BlocksRefused,
    CancelTask,
    DecodeStarted,
    GrantGrowth,
    PrefillStarted,
    Report,
    StartDecode,
    TaskReleased,
    WorkerLoad,
)


def test_a_prompt_gets_room_for_itself_and_its_answer_gets_the_rest_when_it_is_computed() -> None:
    core = new_core()
    (prompt,) = ask(core, "a", 6, 20)
    (reserve,) = of_type(core.actions, Reserve)
    assert (prompt.num_blocks, prompt.is_answer_held, reserve.num_blocks) == (2, True, 2)
    core.now = 1.0
    actions = compute(core, "a")
    # 26 tokens in all.
    assert extensions(actions) == [("a", 5)]
    assert phase_of(core, "a") is Phase.GENERATION_QUEUED
    core.now = 3.0
    told = commands(answer(core, actions))
    assert told == [
        (MIXED, GrantGrowth(prompt.task_id, 5)),
        (MIXED, StartDecode(prompt.task_id, (1,))),
    ]
    sequence = core.core.state.sequence_by_task[prompt.task_id]
    entries = [(e.change, e.phase, e.worker_id, e.num_blocks) for e in sequence.timeline.entries]
    assert entries[-2:] == [
        (Change.PREFILL_FINISHED, Phase.GENERATION_QUEUED, MIXED, 2),
        (Change.KEPT_IN_PLACE, Phase.DECODING, MIXED, 7),
    ]
    assert sequence.timings(3.0).generation_queue_s == 2.0
    end(core, "a")
    assert_empty(core)


def test_an_answer_that_fits_beside_its_prompt_begins_without_the_ledger() -> None:
    core = new_core()
    ask(core, "a", 5, 3)
    actions = compute(core, "a")
    assert extensions(actions) == []
    assert commands(actions) == [(MIXED, StartDecode(task_of(core, "a"), (1,)))]
    assert phase_of(core, "a") is Phase.DECODING


def test_prompts_go_on_being_sent_from_the_reserve_while_answers_wait() -> None:
    core = new_core()
    # 24 of 32 blocks; 4 are the reserve.
    running(core, "first", 4, 92)
    sent = [bool(ask(core, name, 8, 40)) for name in "abc"]
    assert sent == [True, True, False], "two prompts of two blocks fill the reserve"
    assert extensions(compute(core, "a") + compute(core, "b")) == []
    assert phase_of(core, "a") is phase_of(core, "b") is Phase.GENERATION_QUEUED
    assert len(core.core.state.answer_lines) == core.core.state.num_waiting_answers == 2


def test_a_prompt_larger_than_the_reserve_is_sent_when_nothing_else_is_in_there() -> None:
    core = new_core()
    running(core, "first", 4, 92)
    assert ask(core, "large", 24, 40)
    assert not ask(core, "small", 4, 40)


# PAPERS 1.4.5 and 1.4.7, on a mixed worker.
def test_answers_of_one_length_begin_together_and_longer_ones_first() -> None:
    core = new_core()
    running(core, "first", 4, 92)
    for name, max_tokens in (("a", 12), ("b", 28), ("c", 12), ("d", 28)):
        ask(core, name, 4, max_tokens)
    asked = [extensions(compute(core, name)) for name in "abcd"]
    assert asked == [[("a", 3)], [], [], []]
    assert extensions(end(core, "first")) == [("b", 7), ("d", 7), ("c", 3)]


def test_what_the_reserve_still_has_is_left_to_prompts() -> None:
    core = new_core()
    running(core, "first", 4, 92)
    ask(core, "a", 8, 24)
    # It needs the 6 blocks that are free, and with them its prompt would leave the reserve empty.
    assert extensions(compute(core, "a")) == []
    assert extensions(end(core, "first")) == [("a", 6)]


def test_an_answer_whose_room_the_ledger_refuses_waits_again_and_is_asked_for_later() -> None:
    core = new_core()
    ask(core, "a", 6, 20)
    assert commands(answer(core, compute(core, "a"), granted=False)) == []
    assert phase_of(core, "a") is Phase.GENERATION_QUEUED
    assert extensions(core.tell(TimeReached())) == [], "not at once"
    core.now = 0.1
    actions = core.tell(TimeReached())
    assert extensions(actions) == [("a", 5)]
    answer(core, actions)
    assert phase_of(core, "a") is Phase.DECODING


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_caller_who_leaves_while_its_answer_waits_leaves_nothing_behind(is_asked: bool) -> None:
    core = new_core()
    if not is_asked:
        running(core, "first", 4, 92)
    ask(core, "a", 8, 24)
    actions = compute(core, "a")
    assert bool(extensions(actions)) == is_asked
    task = task_of(core, "a")
    left = core.tell(CallerLeft(RequestId("a")))
    assert [type(command) for _, command in commands(left)] == [CancelTask]
    assert answer(core, actions) == []
    released = core.report(MIXED, TaskReleased(task))
    assert [each.claim.task_id for each in of_type(released, ReleaseHolding)] == [task]
    if not is_asked:
        end(core, "first")
    assert_empty(core)
    assert not core.core.state.answer_lines.lines()


def test_an_answer_that_waits_on_a_worker_that_dies_is_computed_again() -> None:
    core = new_core()
    running(core, "first", 4, 92)
    ask(core, "a", 8, 24)
    compute(core, "a")
    core.tell(WorkerLost(WorkerId(MIXED), Incarnation(1)))
    assert phase_of(core, "a") is Phase.PROMPT_QUEUED
    assert len(core.core.state.answer_lines) == 0
    sent = commands(core.tell(WorkerConnected(hello_of(MIXED, 32, life=2))))
    prompts = [command for _, command in sent if isinstance(command, AdmitPrompt)]
    assert {len(prompt.sequence.output_token_ids) for prompt in prompts} == {1}


def test_when_nothing_runs_the_reserve_is_for_answers_too() -> None:
    core = new_core()
    ask(core, "a", 4, 124)
    assert extensions(compute(core, "a")) == [("a", 31)]


def test_when_nobody_can_go_on_the_last_in_line_makes_room_once_and_then_gets_all_at_once() -> None:
    core = new_core(num_blocks=16, num_reserve=8)
    running(core, "first", 4, 8)
    for name in "ab":
        assert ask(core, name, 16, 48)
    end(core, "first")
    # Each has 4 of 16 blocks and needs 12 more.
    assert extensions(compute(core, "a")) == []
    last = task_of(core, "b")
    actions = compute(core, "b")
    assert commands(actions) == [(MIXED, CancelTask(last, "the task is computed again"))]
    actions = core.report(MIXED, TaskReleased(last))
    assert extensions(actions) == [("a", 12)]
    answer(core, actions)
    actions = end(core, "a")
    (prompt,) = [command for _, command in commands(actions) if isinstance(command, AdmitPrompt)]
    assert (prompt.num_blocks, prompt.is_answer_held) == (16, False)
    assert core.core.state.counters.num_preemptions == 1


@pytest.mark.parametrize("is_booked", [True, False])
def test_a_prompt_that_was_not_booked_may_wait_for_blocks_that_answers_hold(
    is_booked: bool,
) -> None:
    """The ledger was away: its worker may have no room for it before they make some."""
    core = new_core(num_blocks=24, num_reserve=16)
    ask(core, "a", 16, 64)
    core.answers_reserves = False
    (reserve,) = of_type(core.ask(spec_of("b", 40, 8, tpot_s=AT_ONCE)), Reserve)
    life = reserve.preferences[0]
    core.tell(ReservationAnswered(reserve.claim, *life, is_booked=is_booked))
    last = task_of(core, "a")
    cancelled = [command.task_id for _, command in commands(compute(core, "a"))]
    assert cancelled == ([] if is_booked else [last])


def test_in_place_nobody_goes_who_comes_after_one_that_waits_elsewhere() -> None:
    core = new_core()
    running(core, "first", 4, 92)
    core.tell(WorkerConnected(hello_of(PREFILL)))
    core.ask(spec_of("parked", 8, 40, tpot_s=AT_ONCE))
    parked = task_of(core, "parked")
    core.report(PREFILL, PrefillStarted(parked), tokens(parked, 0, 1))
    assert len(core.core.state.generation_queue) == 1
    core.report(PREFILL, load=WorkerLoad(16, 0, 0, 0, admission=Admission.CORDONED))
    core.now = 10.0
    assert ask(core, "a", 4, 8)
    assert extensions(compute(core, "a")) == [], "there would be room for it"
    actions = end(core, "first")
    assert extensions(actions) == [("a", 2)]
    assert [r.claim.task_id for r in of_type(actions, Reserve)] == [parked]


WRONG: list[Callable[[TaskId], Report]] = [
    DecodeStarted,
    lambda task: BlocksRefused(task, 1),
    lambda task: BlocksGranted(task, target_on(MIXED, 1)),
    lambda task: tokens(task, 1, 5),
]


def test_a_worker_that_says_what_it_was_not_asked_is_not_believed() -> None:
    for wrong in WRONG:
        core = new_core()
        running(core, "first", 4, 92)
        ask(core, "a", 8, 24)
        compute(core, "a")
        task = task_of(core, "a")
        core.report(MIXED, wrong(task))
        assert task_of(core, "a") != task, "it costs the task a try"


# --- in blocks of others ----------------------------------------------------------------------


def lent(core: CoreUnderTest) -> StartDecode:
    """`first` decodes on most of the worker; the answer of `a` may begin in the middle of that."""
    running(core, "first", 4, 92)
    ask(core, "a", 8, 24)
    actions = compute(core, "a")
    assert extensions(actions) == []
    ((_, start),) = commands(actions)
    assert isinstance(start, StartDecode)
    return start


# PAPERS 1.4.2: guests come out of the GT queue.
def test_an_answer_that_waits_begins_in_the_middle_of_a_running_one() -> None:
    core = new_core(policy="ecoserve")
    start = lent(core)
    task, place = task_of(core, "a"), start.place
    assert place is not None
    assert (place.host_id, place.num_blocks) == (task_of(core, "first"), 6)
    assert 12 <= place.first <= 14
    assert phase_of(core, "a") is Phase.GENERATION_QUEUED, "its worker looks again"
    core.report(MIXED, DecodeStarted(task))
    sequence = core.core.state.sequence_by_task[task]
    assert (sequence.phase, sequence.num_blocks_borrowed) == (Phase.DECODING, 6)
    assert sequence.decode is not None
    assert sequence.decode.num_blocks == 2, "the rest is booked for its host"
    end(core, "a")
    end(core, "first")
    assert_empty(core)


def test_one_whose_place_was_gone_waits_again_and_not_for_the_same_place() -> None:
    core = new_core(policy="ecoserve")
    task = lent(core).task_id
    assert commands(core.report(MIXED, BlocksRefused(task, 6))) == []
    assert core.core.state.counters.num_guests_refused == 1
    assert list(core.core.state.answer_lines.in_order()) == [task]
    # Its host is a block further, and the line has changed.
    core.report(MIXED, tokens(task_of(core, "first"), 1, 1, 2, 3, 4))
    ask(core, "b", 4, 8)
    started = [command.task_id for _, command in commands(compute(core, "b"))]
    assert task in started


def test_a_caller_who_leaves_while_the_worker_is_asked_leaves_nothing_behind() -> None:
    core = new_core(policy="ecoserve")
    task = lent(core).task_id
    core.tell(CallerLeft(RequestId("a")))
    core.report(MIXED, DecodeStarted(task), TaskReleased(task))
    end(core, "first")
    assert_empty(core)


# --- larger than the general share -------------------------------------------------------------


def test_a_request_larger_than_the_general_share_of_a_mixed_worker_gets_all_of_it() -> None:
    core = new_core(num_blocks=16, num_reserve=4, policy="orca")
    assert [prompt.num_blocks for prompt in ask(core, "a", 4, 56)] == [15]
