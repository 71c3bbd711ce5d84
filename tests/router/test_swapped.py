"""Answers whose KV waits in a decode worker's host memory: when they go on, and when elsewhere."""

from dataclasses import replace

import pytest

from router.admission import admitting
from router.events import (
    CallerLeft,
    EmitFailed,
    EmitFinished,
    EmitTokens,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    TimeReached,
    TransferHolding,
    WakeAt,
    WorkerLost,
)
from router.sequence import Sequence
from router.state import RouterSettings
from router.testing import (
    DECODE,
    PREFILL,
    CoreUnderTest,
    assert_empty,
    commands,
    hello_of,
    of_type,
    spec_of,
    target_on,
    through_prefill,
    tokens,
)
from scheduling.ids import Incarnation, RequestId, TaskId, WorkerId
from scheduling.lifecycle import Phase
from scheduling.messages import (
    Admission,
    AdmitGeneration,
    BlocksGranted,
    BlocksRefused,
    CancelTask,
    DecodeStarted,
    GrowthNeeded,
    KvPushed,
    PrefillStarted,
    Report,
    ResumeGeneration,
    StartPrefill,
    SwappedOut,
    TaskReleased,
    WorkerLoad,
)

SECOND = "decode-1"


def full(num_parked: int = 1) -> WorkerLoad:
    return WorkerLoad(0, 1, 0, 0, num_parked=num_parked)


def free(num_parked: int = 1) -> WorkerLoad:
    return WorkerLoad(12, 0, 0, 0, num_parked=num_parked)


def parked(core: CoreUnderTest) -> TaskId:
    """One request is swapped out, and its worker says that it is full."""
    core.ask(spec_of(max_tokens=20))
    task = through_prefill(core)
    core.report(DECODE, tokens(task, 1, 12))
    core.report(DECODE, SwappedOut(task, 2), load=full())
    return task


def sequence_of(core: CoreUnderTest, request_id: str = "r") -> Sequence:
    return core.core.state.request_by_id[RequestId(request_id)].sequences[0]


def test_a_swapped_answer_gives_its_holding_back_and_goes_on_under_a_new_one() -> None:
    core = CoreUnderTest()
    task = parked(core)
    sequence = sequence_of(core)
    assert [entry.phase for entry in sequence.timeline.entries][-1] is Phase.GENERATION_QUEUED
    assert of_type(core.actions, ReleaseHolding)
    assert core.core.state.legs.held() == []
    resumed = core.report(DECODE, load=free())
    (reserve,) = of_type(resumed, Reserve)
    # 6 prompt tokens and at most 20 of the answer, in blocks of 4.
    assert reserve.num_blocks == 7
    assert commands(resumed) == [(DECODE, ResumeGeneration(task, 7))]
    core.report(DECODE, DecodeStarted(task), load=free(0))
    assert sequence.phase is Phase.DECODING
    (emitted,) = of_type(core.report(DECODE, tokens(task, 2, 13)), EmitTokens)
    assert emitted.tokens.first_token_index == 2
    last = core.report(DECODE, tokens(task, 3, 14, finish="length"))
    (finished,) = of_type(last, EmitFinished)
    assert (finished.timings.num_swaps, finished.timings.num_preemptions) == (1, 1)
    assert sequence.num_tries == 1
    released = core.report(DECODE, TaskReleased(task))
    assert [release.claim for release in of_type(released, ReleaseHolding)] == [reserve.claim]
    assert_empty(core)


def test_nothing_new_starts_where_an_answer_is_parked() -> None:
    core = CoreUnderTest((hello_of(PREFILL), hello_of(DECODE), hello_of(SECOND, 12)))
    core.ask(spec_of(max_tokens=20))
    task = core.task_id()
    leg = sequence_of(core).decode
    assert leg is not None
    assert leg.worker_id is not None
    worker = leg.worker_id
    other = SECOND if worker == DECODE else DECODE
    core.report(PREFILL, PrefillStarted(task))
    core.report(worker, BlocksGranted(task, target_on(worker, 2)))
    core.report(PREFILL, tokens(task, 0, 11))
    core.report(PREFILL, KvPushed(task, 2, 64, 0.001, "loopback"), TaskReleased(task))
    core.report(worker, DecodeStarted(task))
    core.report(worker, SwappedOut(task, 2), load=full())
    # It has room again, and more than the other one; but not yet for long.
    core.answers_reserves = False
    core.report(worker, load=free(0))
    core.report(other, load=WorkerLoad(6, 0, 0, 0))
    core.answers_reserves = True
    admitted = core.ask(spec_of("new"))
    assert [to for to, what in commands(admitted) if isinstance(what, AdmitGeneration)] == [other]


def test_what_other_routers_have_parked_comes_first_as_well() -> None:
    core = CoreUnderTest()
    core.report(DECODE, load=free(num_parked=1))
    assert [type(what) for _, what in commands(core.ask(spec_of()))] == [StartPrefill]
    admitted = core.report(DECODE, load=free(num_parked=0))
    assert commands(admitted) == []
    admitted = core.report(PREFILL, PrefillStarted(core.task_id()), tokens(core.task_id(), 0, 11))
    assert [type(what) for _, what in commands(admitted)] == [AdmitGeneration]


# Enough for a newcomer, which needs 4 blocks, and one too few for the answer that is parked.
SOME_ROOM = WorkerLoad(8, 0, 0, 0, num_parked=1)


def parked_far_ahead(deadline_s: float | None = None) -> CoreUnderTest:
    """One answer is parked; its second token is due after 200 s, so newcomers get 100 s."""
    core = CoreUnderTest()
    core.ask(spec_of(num_prompt=20, max_tokens=30, tpot_s=100.0, deadline_s=deadline_s))
    task = through_prefill(core)
    core.report(DECODE, tokens(task, 1, 12))
    core.report(DECODE, SwappedOut(task, 5), load=replace(full(), parked_due_in_s=100.0))
    return core


def newcomer_on_decode_worker(core: CoreUnderTest, ttft_s: float) -> bool:
    """Whether the worker gets its answer as soon as its prompt begins."""
    begun = commands(core.ask(spec_of("new", ttft_s=ttft_s)))
    assert type(begun[0][1]) is StartPrefill
    return [type(what) for _, what in begun[1:]] == [AdmitGeneration]


@pytest.mark.parametrize(("ttft_s", "goes_first"), [(99.0, True), (101.0, False), (-5.0, True)])
def test_a_newcomer_that_is_due_sooner_begins_where_an_answer_is_parked(
    ttft_s: float, goes_first: bool
) -> None:
    core = parked_far_ahead()
    core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=100.0))
    assert newcomer_on_decode_worker(core, ttft_s) == goes_first


def test_the_time_that_a_parked_answer_gives_to_newcomers_ends() -> None:
    core = parked_far_ahead()
    core.now = 100.0
    core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=0.0))
    assert not newcomer_on_decode_worker(core, 0.001)
    room = replace(free(), num_free_blocks=14, parked_due_in_s=0.0)
    resumed = core.report(DECODE, load=room)
    assert [type(what) for _, what in commands(resumed)] == [ResumeGeneration]


def test_a_parked_answer_whose_request_must_end_soon_gives_less() -> None:
    core = parked_far_ahead(deadline_s=20.0)
    core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=100.0))
    assert not newcomer_on_decode_worker(core, 11.0)


def test_room_for_the_parked_answer_is_its_own_whoever_is_due_sooner() -> None:
    core = parked_far_ahead()
    room = replace(free(), num_free_blocks=14, parked_due_in_s=100.0)
    resumed = core.report(DECODE, load=room)
    assert [type(what) for _, what in commands(resumed)] == [ResumeGeneration]


@pytest.mark.parametrize(("ttft_s", "goes_first"), [(4.0, True), (6.0, False)])
def test_newcomers_go_before_what_other_routers_have_parked_by_the_same_rule(
    ttft_s: float, goes_first: bool
) -> None:
    core = CoreUnderTest()
    core.now = 50.0
    core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=5.0))
    assert newcomer_on_decode_worker(core, ttft_s) == goes_first


@pytest.mark.parametrize("before_s", [None, 1.0])
def test_who_waits_is_looked_at_again_when_newcomers_are_given_more_time(
    before_s: float | None,
) -> None:
    """Though nothing else has changed on the worker."""
    core = parked_far_ahead()
    core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=before_s))
    core.ask(spec_of("new", ttft_s=50.0, tpot_s=50.0))
    task = core.task_id(request_id="new")
    told = core.report(PREFILL, PrefillStarted(task), tokens(task, 0, 11))
    assert commands(told) == []
    told = core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=100.0))
    assert [type(what) for _, what in commands(told)] == [AdmitGeneration]


def test_where_the_worker_does_not_say_when_nobody_goes_before_what_is_parked() -> None:
    core = parked_far_ahead()
    core.report(DECODE, load=SOME_ROOM)
    assert not newcomer_on_decode_worker(core, 0.1)


def test_who_is_parked_does_not_count_among_those_that_a_newcomer_must_fit_beside() -> None:
    """It comes back when there is room; the others may fill the worker until then."""
    core = parked_far_ahead()
    state = core.core.state
    view = state.fleet.get(WorkerId(DECODE))
    assert view is not None
    core.report(DECODE, load=replace(SOME_ROOM, parked_due_in_s=100.0))
    assert view.num_tokens_at_most == 50
    core.ask(spec_of("new", num_prompt=30, max_tokens=20))
    assert admitting(state, (view,), sequence_of(core, "new")) == (view,)


def test_a_worker_without_room_after_all_keeps_it_parked() -> None:
    core = CoreUnderTest()
    task = parked(core)
    core.report(DECODE, load=free())
    refused = core.report(DECODE, BlocksRefused(task, 0), load=full())
    assert of_type(refused, ReleaseHolding)
    sequence = sequence_of(core)
    assert (sequence.phase, sequence.preemptions.num_swaps) == (Phase.GENERATION_QUEUED, 1)
    core.now += 1.0
    again = core.report(DECODE, load=free())
    assert commands(again) == [(DECODE, ResumeGeneration(task, 7))]


def test_a_ledger_without_room_is_asked_again_after_a_pause() -> None:
    core = CoreUnderTest(answers_reserves=False)
    core.ask(spec_of(max_tokens=20))
    for reserve in of_type(core.actions, Reserve):
        core.grant(reserve)
    core.grant(of_type(core.actions, Reserve)[1])
    task = through_prefill(core)
    core.report(DECODE, SwappedOut(task, 2), load=full())
    (reserve,) = of_type(core.report(DECODE, load=free()), Reserve)
    paused = core.tell(ReservationAnswered(reserve.claim, None))
    assert of_type(paused, Reserve) == []
    (wake,) = of_type(paused, WakeAt)
    core.now = wake.at_s
    (again,) = of_type(core.tell(TimeReached()), Reserve)
    assert again.claim.number > reserve.claim.number
    # The caller leaves before the answer comes: the worker hears of it at once.
    left = core.tell(CallerLeft(RequestId("r")))
    assert [type(what) for _, what in commands(left)] == [CancelTask]
    core.report(DECODE, TaskReleased(task))
    late = core.grant(again)
    assert of_type(late, ReleaseHolding)
    assert_empty(core)


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_parked_answer_ends_with_its_caller(is_asked: bool) -> None:
    core = CoreUnderTest()
    task = parked(core)
    core.answers_reserves = False
    if is_asked:
        core.report(DECODE, load=free())
    left = core.tell(CallerLeft(RequestId("r")))
    assert [type(what) for _, what in commands(left)] == [CancelTask]
    assert of_type(left, EmitFailed)
    core.report(DECODE, TaskReleased(task))
    assert_empty(core)


def test_a_lost_or_emptied_worker_lets_its_parked_answers_be_computed_again() -> None:
    for is_lost in (True, False):
        core = CoreUnderTest()
        task = parked(core)
        if is_lost:
            core.tell(WorkerLost(WorkerId(DECODE), Incarnation(1)))
        else:
            load = WorkerLoad(0, 1, 0, 0, admission=Admission.EVACUATING, num_parked=1)
            emptied = core.report(DECODE, load=load)
            assert [type(what) for to, what in commands(emptied) if to == DECODE] == [CancelTask]
        assert core.task_id() != task
        assert sequence_of(core).output_token_ids == [11, 12]


def test_one_that_waits_long_is_computed_elsewhere_where_nobody_else_waits_for_the_room() -> None:
    workers = (hello_of(PREFILL), hello_of(DECODE, 13), hello_of(SECOND, 12))
    core = CoreUnderTest(workers, RouterSettings(max_parked_s=2.0))
    task = parked(core)
    wakes = [wake.at_s for wake in of_type(core.actions, WakeAt)]
    assert wakes[-1] == 2.0
    core.report(SECOND, load=full(0))
    core.now = 2.0
    core.tell(TimeReached())
    assert core.task_id() == task, "there is no room elsewhere either"
    moved = core.report(SECOND, load=free(0))
    assert (DECODE, "CancelTask") in [(to, type(what).__name__) for to, what in commands(moved)]
    assert core.task_id() != task
    sequence = sequence_of(core)
    assert (sequence.preemptions.num_times, sequence.preemptions.num_swaps) == (1, 1)
    assert sequence.num_tries == 2
    assert core.core.state.counters.num_preemptions == 1, "it made room once, both ways"
    assert sequence.has_made_room
    core.report(DECODE, TaskReleased(task))


def test_one_that_its_worker_can_never_hold_is_computed_elsewhere_at_once() -> None:
    workers = (hello_of(PREFILL, 40), hello_of(DECODE, 6), hello_of(SECOND, 40))
    core = CoreUnderTest(workers, policy="fcfs")
    core.report(SECOND, load=full(0))
    core.ask(spec_of(max_tokens=40))
    task = through_prefill(core)
    core.report(DECODE, SwappedOut(task, 2), load=full())
    assert core.task_id() != task


@pytest.mark.parametrize(
    "report",
    [
        lambda task: tokens(task, 2, 13),
        lambda task: GrowthNeeded(task, 1),
        DecodeStarted,
        lambda task: SwappedOut(task, 1),
        lambda task: BlocksGranted(task, target_on(DECODE, 2)),
        lambda task: BlocksRefused(task, 0),
        TaskReleased,
    ],
)
def test_what_a_worker_cannot_say_of_a_parked_task_costs_a_try(report: type[Report]) -> None:
    core = CoreUnderTest()
    task = parked(core)
    core.report(DECODE, report(task))  # type: ignore[call-arg]
    assert core.task_id() != task
    core.report(DECODE, TaskReleased(task))
    assert sequence_of(core).output_token_ids == [11, 12]


def test_a_slow_word_of_the_prefill_worker_does_not_disturb_a_parked_answer() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=20))
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    core.report(DECODE, BlocksGranted(task, target_on(DECODE, 2)))
    core.report(PREFILL, tokens(task, 0, 11))
    core.report(DECODE, DecodeStarted(task), SwappedOut(task, 2), load=full())
    late = core.report(PREFILL, KvPushed(task, 2, 64, 0.0, "loopback"), TaskReleased(task))
    assert of_type(late, TransferHolding) == []
    assert core.task_id() == task
    assert sequence_of(core).phase is Phase.GENERATION_QUEUED
