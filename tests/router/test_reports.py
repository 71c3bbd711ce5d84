"""What the router makes of reports: faults, retries, refusals, and workers that misbehave."""

from array import array

import pytest

from router.events import (
    Action,
    CallerLeft,
    EmitFailed,
    EmitFinished,
    EmitPromptLogprobs,
    EmitTokens,
    ReleaseHolding,
    RequestSpec,
    ReservationAnswered,
    Reserve,
    TimeReached,
    WakeAt,
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
    KvCorrupted,
    NoWorkerAvailable,
    WorkerFailed,
)
from scheduling.ids import Incarnation, RequestId, TaskId
from scheduling.messages import (
    AdmitGeneration,
    BlocksGranted,
    BlocksRefused,
    CancelTask,
    DecodeStarted,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    PromptScored,
    Report,
    StartPrefill,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    WorkerLoad,
)
from scheduling.sampling import PromptLogprobs, SamplingParams


def scored_spec(num_prompt: int = 6, num_choices: int = 1) -> RequestSpec:
    sampling = SamplingParams(temperature=0.0, seed=5, num_prompt_logprobs=0)
    return spec_of(num_prompt=num_prompt, sampling=sampling, num_choices=num_choices)


def scored(task: TaskId, first: int, end: int) -> PromptScored:
    logprobs = array("f", (-float(position) for position in range(first, end)))
    return PromptScored(task, PromptLogprobs(first, logprobs, array("I"), array("f")))


def passed_on(actions: list[Action]) -> list[float]:
    """Positions of the prompt tokens whose logprobs go to the caller."""
    emitted = of_type(actions, EmitPromptLogprobs)
    for emission in emitted:
        assert emission.logprobs.logprobs[0] == -emission.logprobs.first_token_index
    return [-value for emission in emitted for value in emission.logprobs.logprobs]


def test_logprobs_of_the_prompt_are_passed_on_once_also_when_it_is_computed_again() -> None:
    core = CoreUnderTest()
    first_try = core.ask(scored_spec())
    task = core.task_id()
    (start,) = of_type([what for _, what in commands(first_try)], StartPrefill)
    assert start.sequence.needs_prompt_logits
    core.report(PREFILL, PrefillStarted(task))
    assert passed_on(core.report(PREFILL, scored(task, 1, 3))) == [1, 2]
    again = core.report(PREFILL, TaskFailed(task, "internal", "boom"), TaskReleased(task))
    (start,) = of_type([what for _, what in commands(again)], StartPrefill)
    assert start.sequence.needs_prompt_logits
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    assert passed_on(core.report(PREFILL, scored(task, 1, 2))) == []
    assert passed_on(core.report(PREFILL, scored(task, 2, 6))) == [3, 4, 5]
    core.report(PREFILL, tokens(task, 0, 11))
    lost = core.report(PREFILL, TaskFailed(task, "internal", "boom"), TaskReleased(task))
    (start,) = of_type([what for _, what in commands(lost)], StartPrefill)
    assert start.sequence.output_token_ids == (11,)
    assert not start.sequence.needs_prompt_logits


def test_the_answers_to_one_prompt_have_its_logprobs_from_whichever_comes_first() -> None:
    core = CoreUnderTest()
    core.ask(scored_spec(num_choices=2))
    early, late = core.task_id(0), core.task_id(1)
    core.report(PREFILL, PrefillStarted(early), PrefillStarted(late))
    assert passed_on(core.report(PREFILL, scored(late, 1, 4))) == [1, 2, 3]
    assert passed_on(core.report(PREFILL, scored(early, 1, 6))) == [4, 5]
    assert passed_on(core.report(PREFILL, scored(late, 4, 6))) == []
    actions = core.report(PREFILL, tokens(late, 0, 11), tokens(early, 0, 12))
    assert [emitted.index for emitted in of_type(actions, EmitTokens)] == [1, 0]


@pytest.mark.parametrize(("first", "end"), [(2, 4), (1, 7)])
def test_logprobs_out_of_the_prompt_or_with_a_gap_cost_the_task_a_try(first: int, end: int) -> None:
    core = CoreUnderTest()
    core.ask(scored_spec())
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    assert passed_on(core.report(PREFILL, scored(task, first, end))) == []
    assert core.task_id() != task


def test_a_token_before_the_logprobs_of_its_prompt_costs_the_task_a_try() -> None:
    core = CoreUnderTest()
    core.ask(scored_spec())
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task), scored(task, 1, 5))
    assert of_type(core.report(PREFILL, tokens(task, 0, 11)), EmitTokens) == []
    assert core.task_id() != task


def test_logprobs_that_nobody_asked_for_cost_the_task_a_try() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    assert passed_on(core.report(PREFILL, scored(task, 1, 3))) == []
    assert core.task_id() != task


def test_a_task_is_computed_again_from_its_output_so_far_and_gives_up_in_the_end() -> None:
    core = CoreUnderTest(settings=RouterSettings(max_retries_per_task=1))
    core.ask(spec_of())
    task = through_prefill(core)
    core.report(DECODE, tokens(task, 1, 12))
    again = core.report(DECODE, TaskFailed(task, "internal", "boom"), TaskReleased(task))
    (start,) = [what for _, what in commands(again) if isinstance(what, StartPrefill)]
    assert start.sequence.output_token_ids == (11, 12)
    retry = core.task_id()
    given_up = core.report(PREFILL, TaskFailed(retry, "internal", "boom"), TaskReleased(retry))
    (failed,) = of_type(given_up, EmitFailed)
    assert isinstance(failed.error, WorkerFailed)


def test_kv_that_is_damaged_twice_ends_the_request_without_a_token_of_it() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    for _ in range(2):
        task = core.task_id()
        core.report(DECODE, BlocksGranted(task, target_on(DECODE, 2)))
        core.report(PREFILL, tokens(task, len(_output(core)), 11))
        core.report(PREFILL, KvPushed(task, 2, 64, 0.001, "loopback"), TaskReleased(task))
        actions = core.report(
            DECODE, TaskFailed(task, KvCorrupted.code, "damaged"), TaskReleased(task)
        )
    (failed,) = of_type(actions, EmitFailed)
    assert isinstance(failed.error, KvCorrupted)
    assert_empty(core)


def _output(core: CoreUnderTest) -> list[int]:
    return core.core.state.request_by_id[RequestId("r")].sequences[0].output_token_ids


def test_a_decode_worker_without_room_costs_no_try() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    task = core.task_id()
    refused = core.report(DECODE, BlocksRefused(task, 0))
    assert of_type(refused, ReleaseHolding)
    core.report(PREFILL, tokens(task, 0, 11))
    assert len(core.core.state.generation_queue) == 1
    core.now = 1.0
    assert [type(what) for _, what in commands(core.tell(TimeReached()))] == [AdmitGeneration]
    assert core.task_id() == task


def test_a_refusal_is_forgotten_as_soon_as_something_is_free() -> None:
    core = CoreUnderTest()
    core.ask(spec_of("other"))
    other = core.task_id(request_id="other")
    core.ask(spec_of())
    task = core.task_id()
    core.report(PREFILL, tokens(task, 0, 11))
    core.report(DECODE, BlocksRefused(task, 0))
    core.tell(CallerLeft(RequestId("other")))
    released = core.report(DECODE, TaskReleased(other))
    assert [type(what) for _, what in commands(released)] == [AdmitGeneration]


def again(core: CoreUnderTest) -> TaskId:
    """The only request goes through prefill again and decodes."""
    task = core.task_id()
    known = core.core.state.sequence_by_task[task].num_output_tokens
    core.report(PREFILL, PrefillStarted(task))
    core.report(DECODE, BlocksGranted(task, target_on(DECODE, 200)))
    core.report(PREFILL, tokens(task, known, 11))
    core.report(PREFILL, KvPushed(task, 2, 64, 0.001, "loopback"), TaskReleased(task))
    core.report(DECODE, DecodeStarted(task))
    return task


def test_a_preempted_task_comes_back_with_more_room_every_time_up_to_all_that_may_come() -> None:
    core = CoreUnderTest(workers=(hello_of(PREFILL, 200), hello_of(DECODE, 200)))
    spec = spec_of(num_prompt=4, max_tokens=400)
    # Short answers so far: by prediction alone, the next try could be preempted as well.
    for _ in range(20):
        core.core.state.predictor.observe(spec.features(), 3)
    core.ask(spec)
    task = through_prefill(core)
    sequence = core.core.state.sequence_by_task[task]
    room = [sequence.num_response_tokens]
    assert sequence.num_output_tokens == 1
    for _ in range(4):
        core.report(DECODE, Preempted(task), TaskReleased(task))
        task = again(core)
        room.append(sequence.num_response_tokens)
    assert room[:3] == [2, 128, 256]
    assert room[3:] == [396, 395], "all that its caller allows"
    assert core.core.state.counters.num_preemptions == 4


def test_a_long_answer_that_was_preempted_comes_back_with_room_for_as_much_again() -> None:
    core = CoreUnderTest(workers=(hello_of(PREFILL, 400), hello_of(DECODE, 400)))
    core.ask(spec_of(num_prompt=4, max_tokens=1000))
    task = through_prefill(core)
    sequence = core.core.state.sequence_by_task[task]
    sequence.output_token_ids += range(199)
    core.report(DECODE, Preempted(task), TaskReleased(task))
    assert sequence.num_tokens_again == sequence.num_output_tokens == 200


def test_early_kv_that_was_on_its_way_to_a_lost_worker_is_computed_again() -> None:
    """The prefill worker may have been able to write into the dead worker's memory."""
    core = CoreUnderTest(workers=(hello_of(PREFILL), hello_of(DECODE), hello_of("decode-1")))
    core.ask(spec_of())
    task = core.task_id()
    leg = core.core.state.sequence_by_task[task].decode
    assert leg is not None
    assert leg.worker_id is not None
    core.report(leg.worker_id, BlocksGranted(task, target_on(leg.worker_id, 2)))
    core.tell(WorkerLost(leg.worker_id, Incarnation(1)))
    assert core.task_id() != task
    core.report(PREFILL, tokens(task, 0, 11), TaskReleased(task))
    assert core.core.state.request_by_id[RequestId("r")].sequences[0].output_token_ids == []


@pytest.mark.parametrize("worker", [PREFILL, DECODE])
@pytest.mark.parametrize(
    "kind",
    [
        PrefillStarted,
        DecodeStarted,
        Preempted,
        lambda task: SwappedOut(task, 1),
        lambda task: KvPushed(task, 1, 1, 0.0, "loopback"),
        lambda task: BlocksGranted(task, target_on(DECODE, 2)),
        lambda task: BlocksRefused(task, 0),
        lambda task: GrowthNeeded(task, 1),
        lambda task: tokens(task, 0, 9),
        lambda task: tokens(task, 7, 9),
        TaskReleased,
    ],
)
@pytest.mark.parametrize("is_decoding", [False, True])
def test_no_report_out_of_turn_breaks_the_router(
    worker: str, kind: type[Report], is_decoding: bool
) -> None:
    """A worker is another process: its defect costs the task a try, not the router its life."""
    core = CoreUnderTest(settings=RouterSettings(max_retries_per_task=100))
    core.ask(spec_of())
    if is_decoding:
        through_prefill(core)
    for _ in range(3):
        core.report(worker, kind(core.task_id()))  # type: ignore[call-arg]
    core.tell(CallerLeft(RequestId("r")))
    for leg in core.core.state.legs.held():
        assert leg.worker_id is not None
        core.report(leg.worker_id, TaskReleased(leg.task_id))
    assert_empty(core)


def test_only_who_computed_the_prompt_itself_may_keep_the_kv_of_what_outgrew_its_room() -> None:
    """Elsewhere no line is there in which it could wait for more."""
    core = CoreUnderTest()
    core.ask(spec_of())
    task = through_prefill(core)
    again = [what for _, what in commands(core.report(DECODE, Preempted(task, keeps_kv=True)))]
    assert [type(what) for what in again[:2]] == [CancelTask, StartPrefill]
    assert list(core.core.state.answer_lines.in_order()) == []


def test_a_draining_worker_gets_no_new_task_and_a_new_request_is_told_to_wait() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    task = through_prefill(core)
    core.report(DECODE, load=WorkerLoad(12, 1, 0, 0, is_draining=True))
    with pytest.raises(NoWorkerAvailable, match="about to leave"):
        core.ask(spec_of("late"))
    ended = core.report(DECODE, tokens(task, 1, 12, finish="stop"), TaskReleased(task))
    assert of_type(ended, EmitFinished)
    assert_empty(core)


def test_refusals_of_the_ledger_are_tried_again_after_a_pause() -> None:
    core = CoreUnderTest(answers_reserves=False)
    (reserve,) = of_type(core.ask(spec_of()), Reserve)
    paused = core.tell(ReservationAnswered(reserve.claim, None))
    assert of_type(paused, Reserve) == []
    told = paused
    while not of_type(told, Reserve):
        (wake,) = of_type(told, WakeAt)
        core.now = wake.at_s
        told = core.tell(TimeReached())
    assert core.now == pytest.approx(0.05)
    (again,) = of_type(told, Reserve)
    assert again.claim.number > reserve.claim.number


def test_a_worker_whose_pushes_fail_is_not_the_first_to_be_asked_again() -> None:
    core = CoreUnderTest(
        (hello_of("prefill-0"), hello_of("prefill-1"), hello_of("decode-0")),
    )
    core.ask(spec_of())
    task = core.task_id()
    # It fails at once, so it looks idle, and stood first the first time.
    actions = core.report(PREFILL, TaskFailed(task, "transfer_failed", "no way to the peer"))
    retry = next(a for a in of_type(actions, Reserve) if a.claim.role == "prefill")
    assert [worker_id for worker_id, _ in retry.preferences] == ["prefill-1"]


def test_a_preempted_answer_that_ends_on_the_prefill_worker_still_names_who_decoded_it() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=2))
    task = through_prefill(core)
    core.report(DECODE, Preempted(task), TaskReleased(task))
    last = core.report(PREFILL, tokens(core.task_id(), 1, 12, finish="length"))
    (finished,) = of_type(last, EmitFinished)
    assert finished.timings.decode_worker == DECODE
