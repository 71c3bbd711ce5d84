"""What the router does with arrivals, deadlines, several answers and callers who leave."""

import pytest

from router.events import (
    CallerLeft,
    EmitFailed,
    EmitFinished,
    EmitTokens,
    ReleaseHolding,
    ReportsArrived,
    ReservationAnswered,
    Reserve,
    TimeReached,
    WakeAt,
    WorkerConnected,
    WorkerLost,
)
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
from scheduling.errors import (
    CanNeverFit,
    DeadlineExceeded,
    DuplicateRequest,
    NoWorkerAvailable,
    QueueFull,
    RequestCancelled,
    WorkerFailed,
)
from scheduling.ids import Incarnation, RequestId, WorkerId
from scheduling.lifecycle import Phase
from scheduling.messages import (
    AdmitGeneration,
    BlocksGranted,
    CancelTask,
    DecodeStarted,
    KvPushed,
    PrefillStarted,
    PushTo,
    StartDecode,
    StartPrefill,
    TaskFailed,
    TaskReleased,
    WorkerLoad,
)
from scheduling.sampling import SamplingParams

# --- admission --------------------------------------------------------------------------------


def test_a_prompt_is_dispatched_and_its_decode_blocks_asked_for_in_the_same_breath() -> None:
    core = CoreUnderTest()
    actions = core.ask(spec_of())
    task = core.task_id()
    assert [type(command) for _, command in commands(actions)] == [StartPrefill, AdmitGeneration]
    granted = core.report(DECODE, BlocksGranted(task, target_on(DECODE, 2)))
    assert [(who, type(what)) for who, what in commands(granted)] == [(PREFILL, PushTo)]
    bound = core.report(PREFILL, tokens(task, 0, 11))
    assert commands(bound) == [(DECODE, StartDecode(task, (11,)))]


def test_a_request_that_no_pair_could_ever_hold_is_refused_at_once() -> None:
    core = CoreUnderTest(workers=(hello_of(PREFILL, 16), hello_of(DECODE, 4)))
    core.ask(spec_of("fits", num_prompt=8, max_tokens=8))
    with pytest.raises(CanNeverFit, match="17 tokens"):
        core.ask(spec_of("large", num_prompt=9, max_tokens=8))
    assert RequestId("large") not in core.core.state.request_by_id


def test_without_a_compatible_pair_the_caller_may_try_again_later() -> None:
    alone = CoreUnderTest(workers=(hello_of(PREFILL),))
    with pytest.raises(NoWorkerAvailable, match="no decode worker") as refused:
        alone.ask(spec_of())
    assert refused.value.retry_after_s is not None
    mismatched = CoreUnderTest(workers=(hello_of(PREFILL), hello_of(DECODE, compatibility="other")))
    with pytest.raises(NoWorkerAvailable, match="no two are compatible"):
        mismatched.ask(spec_of())


def test_a_running_request_id_is_refused() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    with pytest.raises(DuplicateRequest):
        core.ask(spec_of())


def test_the_prompt_queue_is_bounded_and_counts_every_answer() -> None:
    core = CoreUnderTest(settings=RouterSettings(max_prompt_queue=3), answers_reserves=False)
    core.tell(WorkerLost(WorkerId(DECODE), Incarnation(1)))
    core.tell(WorkerConnected(hello_of(DECODE)))
    for name in ("a", "b"):
        core.ask(spec_of(name, num_prompt=30, max_tokens=2))
    core.ask(spec_of("c", num_prompt=30, max_tokens=2, num_choices=2))
    assert len(core.core.state.prompt_queue) == 2
    with pytest.raises(QueueFull) as refused:
        core.ask(spec_of("d", num_prompt=30, max_tokens=2, num_choices=2))
    assert refused.value.retry_after_s == 1.0
    core.ask(spec_of("e", num_prompt=30, max_tokens=2))


# --- deadlines and callers --------------------------------------------------------------------


def test_a_deadline_ends_both_legs_and_wakes_once() -> None:
    core = CoreUnderTest()
    actions = core.ask(spec_of(deadline_s=2.0))
    assert WakeAt(2.0) in actions
    task = through_prefill(core)
    core.now = 2.0
    late = core.tell(TimeReached())
    (failed,) = of_type(late, EmitFailed)
    assert isinstance(failed.error, DeadlineExceeded)
    assert failed.gpu_work_spent
    assert [(who, type(what)) for who, what in commands(late)] == [(DECODE, CancelTask)]
    core.report(DECODE, TaskReleased(task))
    assert_empty(core)


def test_a_deadline_of_zero_ends_a_request_that_has_not_begun() -> None:
    core = CoreUnderTest(answers_reserves=False)
    assert WakeAt(0.0) in core.ask(spec_of(deadline_s=0.0))
    (failed,) = of_type(core.tell(TimeReached()), EmitFailed)
    assert not failed.gpu_work_spent


def test_a_caller_who_leaves_while_the_ledger_is_asked_leaves_nothing_behind() -> None:
    core = CoreUnderTest(answers_reserves=False)
    (reserve,) = of_type(core.ask(spec_of()), Reserve)
    (failed,) = of_type(core.tell(CallerLeft(RequestId("r"))), EmitFailed)
    assert isinstance(failed.error, RequestCancelled)
    assert ReleaseHolding(reserve.claim) in core.grant(reserve)
    assert_empty(core)
    assert core.tell(CallerLeft(RequestId("r"))) == []


def test_a_grant_on_a_worker_that_restarted_meanwhile_is_given_back() -> None:
    core = CoreUnderTest(answers_reserves=False)
    (reserve,) = of_type(core.ask(spec_of()), Reserve)
    core.tell(WorkerConnected(hello_of(PREFILL, life=2)))
    answered = core.grant(reserve)
    assert ReleaseHolding(reserve.claim) in answered
    (again,) = of_type(answered, Reserve)
    assert again.preferences == ((PREFILL, 2),)


def test_a_request_id_used_again_gets_tasks_of_its_own() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    first = core.task_id()
    core.tell(CallerLeft(RequestId("r")))
    core.ask(spec_of())
    second = core.task_id()
    assert first != second
    # What is still said of the first must not reach the second.
    assert (
        of_type(core.report(PREFILL, tokens(first, 0, 99), TaskReleased(first)), EmitTokens) == []
    )
    assert core.core.state.sequence_by_task[second].phase is Phase.PREFILLING


def test_two_routers_never_name_a_task_alike() -> None:
    cores = [CoreUnderTest(settings=RouterSettings(task_tag=f"router-{n}.")) for n in (0, 1)]
    for core in cores:
        core.ask(spec_of())
    assert cores[0].task_id() != cores[1].task_id()


# --- answers ----------------------------------------------------------------------------------


def test_an_answer_of_one_token_ends_on_the_prefill_worker() -> None:
    core = CoreUnderTest()
    actions = core.ask(spec_of(max_tokens=1))
    assert [type(what) for _, what in commands(actions)] == [StartPrefill], "no early binding"
    task = core.task_id()
    ended = core.report(PREFILL, tokens(task, 0, 11, finish="length"), TaskReleased(task))
    (finished,) = of_type(ended, EmitFinished)
    assert finished.timings.tpot_s is None
    assert_empty(core)


def test_the_phases_of_an_answer_add_up_to_its_time() -> None:
    core = CoreUnderTest(answers_reserves=False)
    (reserve,) = of_type(core.ask(spec_of()), Reserve)
    task = core.task_id()
    core.now = 1.0
    (early,) = of_type(core.grant(reserve), Reserve)
    core.now = 1.5
    core.report(PREFILL, PrefillStarted(task))
    core.now = 2.0
    core.report(PREFILL, tokens(task, 0, 11))
    core.now = 3.0
    core.grant(early)
    core.report(DECODE, BlocksGranted(task, target_on(DECODE, 2)))
    core.now = 4.0
    core.report(PREFILL, KvPushed(task, 2, 64, 0.001, "loopback"), TaskReleased(task))
    core.report(DECODE, DecodeStarted(task))
    core.now = 6.0
    core.report(DECODE, tokens(task, 1, 12))
    core.now = 8.0
    (finished,) = of_type(core.report(DECODE, tokens(task, 2, 13, finish="stop")), EmitFinished)
    timings = finished.timings
    assert (timings.prompt_queue_s, timings.prefill_s) == (1.5, 0.5)
    assert (timings.generation_queue_s, timings.transfer_s) == (1.0, 1.0)
    assert (timings.decode_s, timings.total_s) == (4.0, 8.0)
    assert (timings.ttft_s, timings.tpot_s) == (2.0, 3.0)
    assert not timings.early_binding
    assert (timings.num_blocks_moved, timings.num_bytes_moved) == (2, 64)
    # As the prefill worker timed it.
    assert (timings.num_bytes_pushed, timings.push_s) == (64, 0.001)


def test_each_answer_draws_with_a_seed_of_its_own_and_the_last_one_ends_the_request() -> None:
    core = CoreUnderTest()
    sampling = SamplingParams(seed=2**64 - 1)
    actions = core.ask(spec_of(num_choices=2, max_tokens=1, sampling=sampling))
    starts = [what for _, what in commands(actions) if isinstance(what, StartPrefill)]
    assert [start.sequence.sampling.seed for start in starts] == [2**64 - 1, 0]
    first, second = core.task_id(0), core.task_id(1)
    core.report(PREFILL, tokens(first, 0, 11, finish="length"), TaskReleased(first))
    assert core.core.state.counters.num_finished == 0
    core.report(PREFILL, tokens(second, 0, 12, finish="length"), TaskReleased(second))
    assert core.core.state.counters.num_finished == 1
    assert_empty(core)


def test_one_answer_that_fails_for_good_ends_the_others() -> None:
    core = CoreUnderTest(settings=RouterSettings(max_retries_per_task=0))
    core.ask(spec_of(num_choices=2))
    first, second = core.task_id(0), core.task_id(1)
    failed = core.report(PREFILL, TaskFailed(first, "internal", "boom"), TaskReleased(first))
    (emitted,) = of_type(failed, EmitFailed)
    assert isinstance(emitted.error, WorkerFailed)
    cancelled = {what.task_id for _, what in commands(failed) if isinstance(what, CancelTask)}
    assert second in cancelled
    core.report(PREFILL, TaskReleased(second))
    core.report(DECODE, TaskReleased(first), TaskReleased(second))
    assert_empty(core)


# --- without the ledger -----------------------------------------------------------------------


def test_a_prompt_that_was_not_booked_is_bound_when_it_is_computed_and_not_before() -> None:
    """It may wait on its worker for blocks that parked KV holds, which waits for decode blocks."""
    core = CoreUnderTest(answers_reserves=False)
    (reserve,) = of_type(core.ask(spec_of()), Reserve)
    worker_id, life = reserve.preferences[0]
    sent = core.tell(ReservationAnswered(reserve.claim, worker_id, life, is_booked=False))
    assert [type(command) for _, command in commands(sent)] == [StartPrefill]
    assert of_type(sent, Reserve) == []
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    (late,) = of_type(core.report(PREFILL, tokens(task, 0, 11)), Reserve)
    assert late.claim.role == "decode"


@pytest.mark.parametrize("is_granted", [True, False])
@pytest.mark.parametrize("worker_id", [PREFILL, DECODE])
def test_a_session_may_break_and_return_in_the_same_life_while_the_ledger_is_asked(
    worker_id: str, is_granted: bool
) -> None:
    core = CoreUnderTest(answers_reserves=False)
    (reserve,) = of_type(core.ask(spec_of(num_prompt=14)), Reserve)
    if worker_id == DECODE:
        (reserve,) = of_type(core.grant(reserve), Reserve)
    core.tell(WorkerLost(WorkerId(worker_id), Incarnation(1)))
    core.tell(WorkerConnected(hello_of(worker_id)))
    view = core.core.state.fleet.get(WorkerId(worker_id))
    assert view is not None
    assert view.num_promised_blocks == reserve.num_blocks
    chosen = (WorkerId(worker_id), Incarnation(1)) if is_granted else (None, None)
    core.tell(ReservationAnswered(reserve.claim, *chosen))


@pytest.mark.parametrize("says_so", [False, True])
def test_a_prefill_worker_that_fails_after_the_kv_has_arrived_costs_nothing(says_so: bool) -> None:
    """It may not have said that its last copy ended when the decode worker has seen all blocks."""
    core = CoreUnderTest()
    core.ask(spec_of())
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    core.report(DECODE, BlocksGranted(task, target_on(DECODE, 4)))
    core.report(PREFILL, tokens(task, 0, 11))
    core.report(DECODE, DecodeStarted(task))
    if says_so:
        failed = TaskFailed(task, "transfer_failed", "the last copy was cut off")
        core.report(PREFILL, failed, TaskReleased(task))
    else:
        core.tell(WorkerLost(WorkerId(PREFILL), Incarnation(1)))
    assert core.task_id() == task
    assert core.core.state.counters.num_migrations == 0
    core.report(DECODE, tokens(task, 1, 12, finish="stop"), TaskReleased(task))
    assert_empty(core)


# --- what needs no decision -------------------------------------------------------------------


def test_a_frame_of_tokens_alone_decides_nothing() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=20))
    task = through_prefill(core)
    core.ask(spec_of("long", num_prompt=40))
    core.ask(spec_of("waiting", num_prompt=40))
    fleet = core.core.state.fleet
    assert len(core.core.state.prompt_queue) == 1
    # Room of a sudden, of which the router was not told.
    view = fleet.get(WorkerId(PREFILL))
    assert view is not None
    view.num_promised_blocks = view.num_backlog_tokens = 0
    fleet.touch(view)
    frame = ReportsArrived(WorkerId(DECODE), (tokens(task, 1, 5),), load=None)
    assert [type(action) for action in core.core.handle(frame, 0.0)] == [EmitTokens]
    load = WorkerLoad(3, 1, 0, 0)
    news = core.core.handle(ReportsArrived(WorkerId(DECODE), (tokens(task, 2, 5),), load), 0.0)
    assert of_type(news, Reserve), "how full a worker is, decides"


def test_while_a_prompt_waits_the_queue_is_looked_at_every_20_ms() -> None:
    core = CoreUnderTest()
    core.ask(spec_of("running", num_prompt=40))
    (wake,) = of_type(core.ask(spec_of("waiting", num_prompt=40)), WakeAt)
    assert wake.at_s == pytest.approx(0.02)
    core.now = wake.at_s
    (again,) = of_type(core.tell(TimeReached()), WakeAt)
    assert again.at_s == pytest.approx(0.04)
