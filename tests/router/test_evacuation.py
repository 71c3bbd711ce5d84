"""A cordoned worker gets nothing new; a worker that is emptied loses what it has, to others."""

import pytest

from router.events import EmitTokens, WorkerConnected
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
from scheduling.errors import CanNeverFit, NoWorkerAvailable
from scheduling.messages import (
    Admission,
    AdmitGeneration,
    BlocksGranted,
    CancelTask,
    DecodeStarted,
    KvPushed,
    PrefillStarted,
    StartPrefill,
    TaskReleased,
    WorkerLoad,
)

TWO_OF_EACH = tuple(map(hello_of, ("prefill-0", "prefill-1", "decode-0", "decode-1")))


def load(admission: Admission, num_tasks: int = 0, num_free: int = 16) -> WorkerLoad:
    return WorkerLoad(num_free, 0, 0, 0, num_tasks=num_tasks, admission=admission)


def state_of(core: CoreUnderTest, worker_id: str, admission: Admission) -> list[object]:
    return list(core.report(worker_id, load=load(admission)))


def started_on(core: CoreUnderTest) -> list[str]:
    return [worker for worker, c in commands(core.actions) if isinstance(c, StartPrefill)]


def test_a_cordoned_worker_gets_no_new_prompt_and_no_new_answer() -> None:
    core = CoreUnderTest(TWO_OF_EACH)
    state_of(core, "prefill-0", Admission.CORDONED)
    state_of(core, "decode-0", Admission.CORDONED)
    for name in "abc":
        core.ask(spec_of(name))
    told = {worker for worker, _ in commands(core.actions)}
    assert told == {"prefill-1", "decode-1"}


def test_a_cordoned_worker_keeps_the_tasks_that_it_has() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=3))
    core.report(PREFILL, load=load(Admission.CORDONED, 1))
    core.report(DECODE, load=load(Admission.CORDONED, 1))
    task = through_prefill(core)
    core.report(DECODE, tokens(task, 1, 12, 13, finish="length"), TaskReleased(task))
    assert [record.state for record in core.core.state.ended] == ["finished"]
    assert not [c for _, c in commands(core.actions) if isinstance(c, CancelTask)]
    assert_empty(core)


def test_a_worker_that_connects_cordoned_gets_nothing_before_its_first_load() -> None:
    core = CoreUnderTest((hello_of("prefill-0"), hello_of("decode-0")))
    cordoned = hello_of("prefill-1", admission=Admission.CORDONED)
    core.tell(WorkerConnected(cordoned))
    for name in "abcd":
        core.ask(spec_of(name))
    assert set(started_on(core)) == {"prefill-0"}


def test_prompts_wait_while_all_are_cordoned_and_go_on_when_one_is_opened() -> None:
    core = CoreUnderTest()
    core.ask(spec_of("a", num_prompt=50, max_tokens=10))
    core.ask(spec_of("b", num_prompt=50, max_tokens=10))
    assert len(started_on(core)) == 1
    state_of(core, PREFILL, Admission.CORDONED)
    task = core.task_id(request_id="a")
    core.report(PREFILL, tokens(task, 0, 11, finish="length"), TaskReleased(task))
    assert len(started_on(core)) == 1
    with pytest.raises(NoWorkerAvailable, match="an operator cordoned the workers; wait until"):
        core.ask(spec_of("c"))
    state_of(core, PREFILL, Admission.OPEN)
    assert len(started_on(core)) == 2


def test_a_prompt_that_fits_only_a_cordoned_worker_goes_on_when_that_is_opened() -> None:
    large = (hello_of("prefill-1", 64), hello_of("decode-1", 64))
    core = CoreUnderTest((hello_of("prefill-0"), hello_of("decode-0"), *large))
    blocker = spec_of("a", num_prompt=200, max_tokens=10)
    core.ask(blocker)
    core.ask(spec_of("b", num_prompt=200, max_tokens=10))
    state_of(core, "prefill-1", Admission.CORDONED)
    assert [s.request_id for s in core.core.state.stranded.values()] == ["b"]
    with pytest.raises(CanNeverFit):
        core.ask(spec_of("c", num_prompt=200, max_tokens=10))
    task = core.task_id(request_id="a")
    core.report("prefill-1", tokens(task, 0, 11, finish="length"), TaskReleased(task))
    assert started_on(core) == ["prefill-1"]
    core.report("prefill-1", load=load(Admission.OPEN, num_free=64))
    assert started_on(core) == ["prefill-1"] * 2
    assert not core.core.state.stranded


def test_a_running_answer_moves_to_another_decode_worker_without_losing_a_token() -> None:
    core = CoreUnderTest(TWO_OF_EACH)
    core.ask(spec_of(max_tokens=6))
    task = through_prefill(core)
    core.report(DECODE, tokens(task, 1, 12, 13))
    actions = core.report(DECODE, load=load(Admission.EVACUATING, 1))
    assert (DECODE, CancelTask(task, "the task is computed again")) in commands(actions)
    again = core.task_id()
    assert again != task
    sent = [(w, c) for w, c in commands(actions) if isinstance(c, StartPrefill)]
    assert [c.sequence.output_token_ids for _, c in sent] == [(11, 12, 13)]
    (prefill,) = {worker for worker, _ in sent}
    # What the old try still says is nobody's.
    core.report(DECODE, tokens(task, 3, 99), TaskReleased(task), load=load(Admission.EVACUATING))
    core.report(prefill, PrefillStarted(again))
    core.report("decode-1", BlocksGranted(again, target_on("decode-1", 4)))
    core.report(prefill, tokens(again, 3, 14))
    core.report(prefill, KvPushed(again, 3, 64, 0.001, "loopback"), TaskReleased(again))
    core.report("decode-1", DecodeStarted(again), tokens(again, 4, 15, 16, finish="length"))
    core.report("decode-1", TaskReleased(again))
    emitted = [e.tokens.token_ids for e in of_type(core.actions, EmitTokens)]
    assert [t for ids in emitted for t in ids] == [11, 12, 13, 14, 15, 16]
    (record,) = core.core.state.ended
    assert record.answers[0].num_migrations == 1
    assert "evacuated" in [e.change for e in record.answers[0].timeline.entries]
    assert_empty(core)


def test_evacuations_use_up_none_of_the_tries() -> None:
    core = CoreUnderTest((hello_of("prefill-0"), hello_of("prefill-1"), hello_of("decode-0")))
    core.ask(spec_of())
    for turn in range(20):
        worker = f"prefill-{turn % 2}"
        task = core.task_id()
        state_of(core, f"prefill-{1 - turn % 2}", Admission.OPEN)
        core.report(worker, load=load(Admission.EVACUATING, 1))
        core.report(worker, TaskReleased(task), load=load(Admission.EVACUATING))
        assert core.task_id() != task
    assert started_on(core) == [f"prefill-{turn % 2}" for turn in range(21)]


def test_parked_kv_is_computed_again_elsewhere() -> None:
    core = CoreUnderTest(TWO_OF_EACH)
    for worker in ("decode-0", "decode-1"):
        core.report(worker, load=load(Admission.OPEN, num_free=0))
    core.ask(spec_of())
    (worker,) = started_on(core)
    core.report(worker, tokens(core.task_id(), 0, 11))
    assert len(core.core.state.generation_queue) == 1
    other = "prefill-1" if worker == "prefill-0" else "prefill-0"
    core.report(worker, load=load(Admission.EVACUATING, 1))
    assert len(core.core.state.generation_queue) == 0
    assert started_on(core) == [worker, other]


def test_kv_on_its_way_out_of_a_prefill_worker_is_left_alone() -> None:
    core = CoreUnderTest(TWO_OF_EACH)
    core.ask(spec_of())
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    core.report(DECODE, BlocksGranted(task, target_on(DECODE, 4)))
    core.report(PREFILL, tokens(task, 0, 11))
    actions = core.report(PREFILL, load=load(Admission.EVACUATING, 1))
    assert commands(actions) == []
    assert core.task_id() == task


def test_evacuating_again_and_again_tells_each_task_once() -> None:
    core = CoreUnderTest(TWO_OF_EACH)
    core.ask(spec_of())
    through_prefill(core)
    for _ in range(3):
        core.report(DECODE, load=load(Admission.EVACUATING, 1))
    cancels = [w for w, c in commands(core.actions) if isinstance(c, CancelTask) and w == DECODE]
    assert cancels == [DECODE]
    assert len([c for _, c in commands(core.actions) if isinstance(c, AdmitGeneration)]) == 2
