"""What the router makes of the prefixes that workers keep."""

from dataclasses import replace

from router.events import EmitFailed, EmitFinished, ReportsArrived, WorkerConnected, WorkerLost
from router.state import RouterSettings
from router.testing import (
    BLOCK_SIZE,
    DECODE,
    PREFILL,
    CoreUnderTest,
    commands,
    hello_of,
    of_type,
    spec_of,
    target_on,
    tokens,
)
from scheduling.errors import WorkerFailed
from scheduling.ids import Incarnation, WorkerId
from scheduling.messages import (
    PREFIX_LOST,
    AdmitGeneration,
    BlocksGranted,
    DecodeStarted,
    PrefillStarted,
    StartPrefill,
    TaskFailed,
    TaskReleased,
)
from scheduling.prefix_chain import PromptPrefix
from scheduling.prefix_index import PrefixChanges
from scheduling.sampling import SamplingParams

FOUR_WORKERS = tuple(
    hello_of(name, num_blocks=64) for name in ("prefill-0", "prefill-1", "decode-0", "decode-1")
)


def told(core: CoreUnderTest, worker_id: str, prompt: tuple[int, ...]) -> None:
    """The worker has this prompt cached."""
    keys = PromptPrefix(prompt).keys(BLOCK_SIZE)
    core.tell(ReportsArrived(WorkerId(worker_id), (), None, PrefixChanges(added=keys)))


def placed(core: CoreUnderTest, request_id: str, **fields: object) -> tuple[str, str]:
    """Where a request goes that is asked now."""
    sent = commands(core.ask(spec_of(request_id, 24, **fields)))  # type: ignore[arg-type]
    (prefill,) = (worker for worker, command in sent if isinstance(command, StartPrefill))
    (decode,) = (worker for worker, command in sent if isinstance(command, AdmitGeneration))
    return prefill, decode


def test_a_prompt_goes_where_it_is_cached() -> None:
    core = CoreUnderTest(FOUR_WORKERS)
    told(core, "prefill-1", tuple(range(24)))
    told(core, "decode-1", tuple(range(24)))
    assert placed(core, "a") == ("prefill-1", "decode-1")


def test_a_salt_and_the_wish_for_prompt_logprobs_make_no_use_of_it() -> None:
    core = CoreUnderTest(FOUR_WORKERS)
    told(core, "prefill-1", tuple(range(24)))
    told(core, "decode-1", tuple(range(24)))
    assert placed(core, "a", cache_salt="mine") == ("prefill-0", "decode-0")
    core = CoreUnderTest(FOUR_WORKERS)
    told(core, "prefill-1", tuple(range(24)))
    sampling = SamplingParams(temperature=0.0, num_prompt_logprobs=1)
    assert placed(core, "a", sampling=sampling)[0] == "prefill-0"


def test_prompts_that_arrive_together_meet_on_one_worker_before_anything_is_cached() -> None:
    core = CoreUnderTest(FOUR_WORKERS)
    sent = commands(core.ask(spec_of("a", 24, num_choices=3)))
    assert [w for w, c in sent if isinstance(c, StartPrefill)] == ["prefill-0"] * 3
    view = core.core.state.fleet.get(WorkerId("prefill-0"))
    assert view is not None
    assert view.num_backlog_tokens == 24 + 2 * 4, "the others compute their last block only"


def test_a_worker_that_comes_back_has_nothing_any_more() -> None:
    core = CoreUnderTest(FOUR_WORKERS)
    told(core, "prefill-1", tuple(range(24)))
    core.tell(WorkerLost(WorkerId("prefill-1"), Incarnation(1)))
    core.tell(WorkerConnected(hello_of("prefill-1", num_blocks=64, life=2)))
    assert placed(core, "a")[0] == "prefill-0"


def test_the_answer_says_what_was_cached_and_what_did_not_travel() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(num_prompt=14))
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task, 12))
    core.report(DECODE, BlocksGranted(task, replace(target_on(DECODE, 1), first_block_index=3)))
    core.report(PREFILL, tokens(task, 0, 11))
    core.report(DECODE, DecodeStarted(task))
    (finished,) = of_type(core.report(DECODE, tokens(task, 1, 5, finish="stop")), EmitFinished)
    assert finished.num_cached_tokens == 12
    assert (finished.timings.num_blocks_moved, finished.timings.num_blocks_skipped) == (1, 3)


def test_what_an_earlier_try_had_to_compute_was_not_cached() -> None:
    core = CoreUnderTest(settings=RouterSettings(max_retries_per_task=3))
    core.ask(spec_of(num_prompt=14))
    first = core.task_id()
    core.report(PREFILL, PrefillStarted(first, 4))
    core.report(PREFILL, TaskFailed(first, "internal", "boom"), TaskReleased(first))
    second = core.task_id()
    core.report(PREFILL, PrefillStarted(second, 12))
    finished = of_type(core.report(PREFILL, tokens(second, 0, 11, finish="stop")), EmitFinished)
    assert finished[0].num_cached_tokens == 4


def test_a_prefix_that_another_lost_costs_no_try_and_happens_once() -> None:
    core = CoreUnderTest(settings=RouterSettings(max_retries_per_task=0))
    core.ask(spec_of())
    task = core.task_id()
    actions = core.report(DECODE, TaskFailed(task, PREFIX_LOST, "it was waited for"))
    assert not of_type(core.actions, EmitFailed)
    again = core.task_id()
    assert again != task
    admitted = [c for _, c in commands(actions) if isinstance(c, AdmitGeneration)]
    assert [(c.task_id, c.source_worker_id) for c in admitted] == [(again, "")]
    core.report(DECODE, TaskFailed(again, "transfer_failed", "boom"))
    assert of_type(core.actions, EmitFailed), "what fails by itself is limited as ever"


def test_a_worker_that_always_blames_a_lost_prefix_fails_the_request_like_any_other() -> None:
    """Only the first loss is nobody's fault: after it, the task waits for no other's transfer."""
    core = CoreUnderTest(settings=RouterSettings(max_retries_per_task=2))
    core.ask(spec_of())
    num_tries = 0
    while core.core.state.request_by_id:
        num_tries += 1
        assert num_tries < 10, "it is tried for ever"
        task = core.task_id()
        lost = TaskFailed(task, PREFIX_LOST, "it was waited for")
        core.report(DECODE, lost, TaskReleased(task))
        core.report(PREFILL, TaskReleased(task))
    assert num_tries == 1 + 2 + 1, "the loss, two tries more, and the last one"
    (failed,) = of_type(core.actions, EmitFailed)
    assert isinstance(failed.error, WorkerFailed)
