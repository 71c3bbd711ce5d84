"""Each choice of a policy is asked for where the router decides."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from router.core_setup import CoreSetup
from router.serve import serve
from router.state import RouterSettings, RouterState
from router.testing import (
    DECODE,
    PREFILL,
    CoreUnderTest,
    commands,
    hello_of,
    of_type,
    spec_of,
    target_on,
    through_prefill,
    tokens,
)
from runtime.config import RouterConfig
from runtime.errors import StartupError
from scheduling.ids import TaskId
from scheduling.messages import (
    AdmitGeneration,
    AdmitPrompt,
    BlocksGranted,
    DecodeStarted,
    KvPushed,
    Preempted,
    PrefillStarted,
    ResumeGeneration,
    StartPrefill,
    SwappedOut,
    TaskReleased,
    WorkerLoad,
)
from scheduling.policy import DeadlineThenOccupancy, Sharing

FULL, FREE = WorkerLoad(0, 0, 0, 0), WorkerLoad(16, 0, 0, 0)
# Who comes first, and who is due first.
by_policy = pytest.mark.parametrize(
    ("policy", "first"), [("fcfs", "patient"), ("default", "urgent")]
)


def ask_both(core: CoreUnderTest) -> tuple[TaskId, TaskId]:
    """The patient one comes before the urgent one."""
    core.ask(spec_of("patient", ttft_s=60.0, tpot_s=10.0))
    core.now += 0.1
    core.ask(spec_of("urgent", ttft_s=2.0, tpot_s=0.1))
    return core.task_id(request_id="patient"), core.task_id(request_id="urgent")


@by_policy
def test_prompts_wait_in_the_order_of_the_policy(policy: str, first: str) -> None:
    core = CoreUnderTest(settings=RouterSettings(max_backlog_tokens=1), policy=policy)
    core.ask(spec_of("running", max_tokens=1))
    running = core.task_id(request_id="running")
    ask_both(core)
    last = tokens(running, 0, 11, finish="length")
    sent = core.report(PREFILL, PrefillStarted(running), last, TaskReleased(running))
    (started,) = of_type((what for _, what in commands(sent)), StartPrefill)
    assert started.task_id == core.task_id(request_id=first)


def test_a_worker_is_told_how_long_the_answer_is_expected_to_be() -> None:
    core = CoreUnderTest()
    for _ in range(40):
        core.core.state.predictor.observe(spec_of("like", max_tokens=30).features(0.0), 3)
    core.ask(spec_of("this", max_tokens=30))
    expected = core.core.state.predictor.predict(spec_of("this", max_tokens=30).features(0.0))
    (started,) = of_type((what for _, what in commands(core.actions)), StartPrefill)
    assert started.sequence.num_predicted_tokens == expected.bound < 30


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(8, 2), (4, 30)])
def test_of_prompts_that_are_due_alike_the_longest_goes_first_whatever_its_answer(
    num_prompt: int, max_tokens: int
) -> None:
    core = CoreUnderTest(settings=RouterSettings(max_backlog_tokens=1))
    core.ask(spec_of("running", max_tokens=1))
    running = core.task_id(request_id="running")
    core.ask(spec_of("other", num_prompt=6, max_tokens=10))
    core.ask(spec_of("this", num_prompt=num_prompt, max_tokens=max_tokens))
    last = tokens(running, 0, 11, finish="length")
    sent = core.report(PREFILL, PrefillStarted(running), last, TaskReleased(running))
    (started,) = of_type((what for _, what in commands(sent)), StartPrefill)
    assert started.task_id == core.task_id(request_id="this" if num_prompt > 6 else "other")


@by_policy
def test_computed_prompts_wait_for_a_decode_worker_in_the_order_of_the_policy(
    policy: str, first: str
) -> None:
    core = CoreUnderTest(policy=policy)
    core.report(DECODE, load=FULL)
    for task in reversed(ask_both(core)):
        core.report(PREFILL, PrefillStarted(task), tokens(task, 0, 11))
    sent = core.report(DECODE, load=FREE)
    admitted = of_type((what for _, what in commands(sent)), AdmitGeneration)
    assert [each.task_id for each in admitted][:1] == [core.task_id(request_id=first)]


@by_policy
def test_answers_in_host_memory_wait_in_the_order_of_the_policy(policy: str, first: str) -> None:
    core = CoreUnderTest(policy=policy)
    tasks = ask_both(core)
    for task in tasks:
        core.report(PREFILL, PrefillStarted(task))
        core.report(DECODE, BlocksGranted(task, target_on(DECODE, 2)))
        core.report(PREFILL, tokens(task, 0, 11))
        core.report(PREFILL, KvPushed(task, 2, 64, 0.001, "loopback"), TaskReleased(task))
        core.report(DECODE, DecodeStarted(task), load=FULL)
    for task in reversed(tasks):
        core.report(DECODE, SwappedOut(task, 2), load=FULL)
    sent = core.report(DECODE, load=FREE)
    resumed = of_type((what for _, what in commands(sent)), ResumeGeneration)
    assert [each.task_id for each in resumed][:1] == [core.task_id(request_id=first)]


def taught(policy: str, *worker_ids: str) -> CoreUnderTest:
    """Workers of 64 blocks of 4 tokens; all answers so far had 150 tokens."""
    workers = [hello_of(worker_id, num_blocks=64) for worker_id in worker_ids]
    core = CoreUnderTest(workers, policy=policy)
    for _ in range(50):
        core.core.state.predictor.observe(spec_of(max_tokens=200).features(), 150)
    return core


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    # Beside the prompt of 6: the next token, 64 tokens, the whole answer.
    [("fcfs", 7, 8), ("default", 70, 72), ("cacheopt", 156, 200)],
)
@pytest.mark.parametrize("workers", [("mixed-0",), (PREFILL, DECODE)], ids=["mixed", "split"])
def test_an_answer_begins_with_as_much_room_as_the_policy_allocates(
    workers: tuple[str, ...], policy: str, least: int, most: int
) -> None:
    sent = commands(taught(policy, *workers).ask(spec_of(max_tokens=200)))
    (admitted,) = [c for _, c in sent if isinstance(c, AdmitPrompt | AdmitGeneration)]
    assert least <= 4 * admitted.num_blocks <= most


@pytest.mark.parametrize(("policy", "is_alone"), [("ecoserve", True), ("cacheopt", False)])
def test_in_place_a_prompt_gets_room_for_its_answer_too_unless_the_policy_decouples_them(
    policy: str, is_alone: bool
) -> None:
    sent = commands(taught(policy, "mixed-0").ask(spec_of(max_tokens=200)))
    (admitted,) = of_type((what for _, what in sent), AdmitPrompt)
    assert (admitted.num_blocks == 2) == is_alone


@pytest.mark.parametrize(("policy", "num_admitted"), [("default", 1), ("fcfs", 2)])
@pytest.mark.parametrize("workers", [("mixed-0",), (PREFILL, DECODE)], ids=["mixed", "split"])
def test_who_may_join_those_that_run_is_the_policys_word_wherever_answers_begin(
    workers: tuple[str, ...], policy: str, num_admitted: int
) -> None:
    """Two answers of 150 tokens fit the 64 blocks when they begin, and not when they end."""
    core = taught(policy, *workers)
    sent = [*core.ask(spec_of("one", max_tokens=200)), *core.ask(spec_of("two", max_tokens=200))]
    admitted = [c for _, c in commands(sent) if isinstance(c, AdmitPrompt | AdmitGeneration)]
    assert len(admitted) == num_admitted


@pytest.mark.parametrize(("policy", "num_reserved"), [("default", 19), ("fcfs", 2)])
def test_a_preempted_answer_comes_back_with_all_that_it_can_need_or_as_it_began(
    policy: str, num_reserved: int
) -> None:
    core = CoreUnderTest(policy=policy)
    spec = spec_of(num_prompt=4, max_tokens=20)
    for _ in range(20):
        core.core.state.predictor.observe(spec.features(), 3)
    core.ask(spec)
    task = through_prefill(core)
    core.report(DECODE, Preempted(task), TaskReleased(task))
    assert core.core.state.sequence_by_task[core.task_id()].num_response_tokens == num_reserved


# --- as a process is set up -------------------------------------------------------------------


def set_up(policy: str, *, lending: bool = True) -> RouterState:
    return CoreSetup(policy, 9.0, 2, lending, RouterSettings()).new_core().state


def test_lending_can_be_switched_off_and_nothing_else_of_the_policy_is() -> None:
    lending, alone = set_up("ecoserve").policy, set_up("ecoserve", lending=False).policy
    assert lending.sharing is Sharing.PIPELINE
    assert alone == replace(lending, sharing=Sharing.NONE)


def test_the_widths_of_buckets_reach_the_order_of_both_queues() -> None:
    assert set_up("default").policy.ordering == DeadlineThenOccupancy(9.0, 2)


def test_what_is_changed_of_the_policy_is_part_of_its_name() -> None:
    state = set_up("fcfs+ordering=deadline+sharing=embed")
    assert state.policy.ordering == DeadlineThenOccupancy(9.0, 2)
    assert state.policy.sharing is Sharing.EMBED


def test_answers_are_predicted_by_the_policys_predictor() -> None:
    features = spec_of(max_tokens=200).features()
    bounds = []
    for policy in ("default", "orca"):
        predictor = set_up(policy).predictor
        for _ in range(50):
            predictor.observe(features, 20)
        bounds.append(predictor.predict(features).bound)
    assert bounds[0] < bounds[1] == 200


async def test_a_policy_that_must_be_told_the_future_ends_the_start_of_a_router() -> None:
    fields = {"model": Path("unread"), "redis_url": "redis://unused:1", "policy": "oracle"}
    config = RouterConfig.model_validate(fields)
    with pytest.raises(StartupError, match="'oracle' is unknown; use one of default"):
        await serve(config, asyncio.Event())
    noisy = {**fields, "policy": "default", "policy_set": ["predictor=noisy-oracle:0.2"]}
    with pytest.raises(StartupError, match=r"noisy-oracle:0.2 must be told .* use another"):
        await serve(RouterConfig.model_validate(noisy), asyncio.Event())
