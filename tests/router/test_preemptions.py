"""Each time that an answer makes room counts once, whatever becomes of its KV."""

from collections.abc import Callable

import pytest

from router.events import Extend, ExtensionAnswered
from router.preemptions import Preemptions
from router.sequence import Sequence
from router.testing import (
    DECODE,
    PREFILL,
    CoreUnderTest,
    hello_of,
    of_type,
    spec_of,
    through_prefill,
    tokens,
)
from scheduling.ids import RequestId, TaskId
from scheduling.messages import (
    DecodeStarted,
    GrowthNeeded,
    Preempted,
    PrefillStarted,
    Report,
    SwappedOut,
    TaskReleased,
    WorkerLoad,
)
from scheduling.policies import POLICIES
from scheduling.prediction import ResponseLength

FULL = WorkerLoad(0, 1, 0, 0, num_parked=1)
FREE = WorkerLoad(12, 0, 0, 0, num_parked=1)


def decoding(*, swaps_itself: bool) -> tuple[CoreUnderTest, TaskId]:
    """An answer that has two tokens."""
    decode = hello_of(DECODE, max_task_blocks=12 if swaps_itself else 0)
    core = CoreUnderTest((hello_of(PREFILL), decode))
    core.ask(spec_of(max_tokens=20))
    task = through_prefill(core)
    core.report(DECODE, tokens(task, 1, 12))
    return core, task


def counted(core: CoreUnderTest) -> tuple[int, int, int, int]:
    """Times, of them swaps, tries of the only answer, and times in all."""
    state = core.core.state
    sequence: Sequence = state.request_by_id[RequestId("r")].sequences[0]
    done = sequence.preemptions
    return done.num_times, done.num_swaps, sequence.num_tries, state.counters.num_preemptions


def test_a_swap_is_one_and_its_way_back_ends_it() -> None:
    core, task = decoding(swaps_itself=False)
    core.report(DECODE, SwappedOut(task, 2), load=FULL)
    assert counted(core) == (1, 1, 1, 1)
    core.report(DECODE, load=FREE)
    core.report(DECODE, DecodeStarted(task))
    core.report(DECODE, Preempted(task), TaskReleased(task))
    assert counted(core) == (2, 1, 2, 2), "it was back, though without a token"


@pytest.mark.parametrize(
    ("more", "num_times"),
    [
        ([], 1),
        # The worker brings KV back without a word: a token tells, and so does another swap.
        ([lambda task: tokens(task, 2, 13)], 2),
        ([lambda task: SwappedOut(task, 2)], 2),
        ([lambda task: SwappedOut(task, 2), lambda task: tokens(task, 2, 13)], 3),
    ],
)
def test_where_a_worker_swaps_by_itself_what_it_gives_up_in_the_end_made_room_once(
    more: list[Callable[[TaskId], Report]], num_times: int
) -> None:
    core, task = decoding(swaps_itself=True)
    reports = [SwappedOut(task, 2), *(report(task) for report in more)]
    for report in [*reports, Preempted(task), TaskReleased(task)]:
        core.report(DECODE, report)
    num_swaps = sum(isinstance(report, SwappedOut) for report in reports)
    assert counted(core) == (num_times, num_swaps, 2, num_times)


def test_one_that_outgrew_its_room_and_keeps_its_kv_made_room_too() -> None:
    core = CoreUnderTest([hello_of("mixed-0", 32)], policy=POLICIES["ecoserve"])
    core.ask(spec_of(max_tokens=40))
    task = core.task_id()
    core.core.state.sequence_by_task[task].predicted = ResponseLength(2, 2)

    def told(report: Report, *, is_granted: bool = True) -> None:
        for extend in of_type(core.report("mixed-0", report), Extend):
            core.tell(ExtensionAnswered(extend.claim, extend.num_blocks, is_granted))

    for report in (PrefillStarted(task), tokens(task, 0, 11), tokens(task, 1, 12, 13)):
        told(report)
    told(GrowthNeeded(task, 1), is_granted=False)
    told(Preempted(task, keeps_kv=True))
    assert counted(core) == (1, 0, 1, 1)


def test_who_makes_room_again_and_again_counts_every_time() -> None:
    done = Preemptions()
    assert [done.note(num_tokens) for num_tokens in (3, 3, 4, 4, 9)] == [True, False] * 2 + [True]
    assert done.num_times == 3
    done.note_return()
    assert done.note(9)
