"""Answers that wait for a decode worker: which go together, where to, and who may overtake."""

from collections.abc import Iterable

import pytest

from router.events import Action, CallerLeft, ReservationAnswered, Reserve, TimeReached
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
    tokens,
)
from scheduling.ids import RequestId, WorkerId
from scheduling.length_groups import LengthGroups
from scheduling.messages import AdmitGeneration, PrefillStarted, TaskReleased

# As a goal, so that answers of all lengths are due in one bucket, and what comes next decides.
AT_ONCE = 1e-4

# Prompts of 4 tokens, answers of so many, in blocks of 4 tokens.
LONG, SHORT = 28, 12


def new_core(policy: str = "ecoserve", num_decode: int = 1) -> CoreUnderTest:
    """Room for everybody on the prefill worker, 32 blocks on each decode worker."""
    decode = [hello_of(f"decode-{n}", 32, num_growth_blocks=0) for n in range(num_decode)]
    settings = RouterSettings(length_quantum_tokens=4)
    return CoreUnderTest([hello_of(PREFILL, 64), *decode], settings, policy)


def compute(core: CoreUnderTest, name: str, max_tokens: int) -> list[str]:
    """A request comes, and its prompt is computed: who gets room then."""
    core.ask(spec_of(name, 4, max_tokens, tpot_s=AT_ONCE))
    task = core.task_id(request_id=name)
    return admitted(core, core.report(PREFILL, PrefillStarted(task), tokens(task, 0, 1)))


def leave(core: CoreUnderTest, name: str) -> list[str]:
    """The caller leaves, and what it had comes back: who gets it."""
    task = core.task_id(request_id=name)
    core.tell(CallerLeft(RequestId(name)))
    core.report(PREFILL, TaskReleased(task))
    return admitted(core, core.report(DECODE, TaskReleased(task)))


def admitted(core: CoreUnderTest, actions: Iterable[Action]) -> list[str]:
    """For whose decode blocks the ledger is asked, in order."""
    claims = [reserve.claim for reserve in of_type(actions, Reserve)]
    sequences = core.core.state.sequence_by_task
    return [sequences[each.task_id].request_id for each in claims if each.role == "decode"]


def workers_of(core: CoreUnderTest) -> list[str]:
    """Who was sent answers, in order."""
    sent = commands(core.actions)
    return [worker for worker, command in sent if isinstance(command, AdmitGeneration)]


# PAPERS 1.4.5: as many selections as groups.
def test_answers_of_one_length_get_freed_room_together_and_are_chosen_once() -> None:
    core = new_core()
    core.ask(spec_of("first", 4, 124, tpot_s=AT_ONCE))
    for name, length in (("a", LONG), ("b", SHORT), ("c", LONG), ("d", SHORT), ("e", LONG)):
        assert compute(core, name, length) == []
    queue = core.core.state.generation_queue
    assert isinstance(queue, LengthGroups)
    first = core.task_id(request_id="first")
    core.tell(CallerLeft(RequestId("first")))
    num_selections = queue.num_selections
    actions = core.report(DECODE, TaskReleased(first))
    assert admitted(core, actions) == ["a", "c", "e", "b", "d"]
    assert queue.num_selections == num_selections + 2


# PAPERS 1.4.7.
@pytest.mark.parametrize(("policy", "order"), [("ecoserve", "bac"), ("orca", "abc")])
def test_within_a_bucket_longer_answers_come_first_where_the_policy_says_so(
    policy: str, order: str
) -> None:
    core = new_core(policy)
    core.ask(spec_of("first", 4, 124, tpot_s=AT_ONCE))
    for name, length in (("a", SHORT), ("b", LONG), ("c", SHORT)):
        compute(core, name, length)
        core.now += 0.001
    assert leave(core, "first") == list(order)


@pytest.mark.parametrize(("policy", "num_admitted"), [("ecoserve", 1), ("orca", 0)])
def test_a_gap_too_small_for_the_first_goes_to_others_where_the_policy_groups(
    policy: str, num_admitted: int
) -> None:
    core = new_core(policy)
    core.ask(spec_of("first", 4, 84, tpot_s=AT_ONCE))
    assert compute(core, "big", 60) == []
    assert len(compute(core, "small", SHORT)) == num_admitted
    assert core.core.state.generation_queue.peek() == core.task_id(request_id="big")


def test_one_that_waits_for_much_room_is_overtaken_only_so_often() -> None:
    core = new_core()
    core.ask(spec_of("first", 4, 84, tpot_s=AT_ONCE))
    compute(core, "big", 60)
    num_overtakes = 0
    while compute(core, f"small{num_overtakes}", SHORT):
        leave(core, f"small{num_overtakes}")
        num_overtakes += 1
        assert num_overtakes <= 64
    assert num_overtakes == 64
    assert leave(core, "first") == ["big", "small64"]


def waiting(lengths: Iterable[int], num_decode: int) -> CoreUnderTest:
    """Computed prompts r0, r1, ... whose answers may be sent to decode workers from now on."""
    core = new_core(num_decode=num_decode)
    for number in range(num_decode):
        core.core.state.fleet.pause(WorkerId(f"decode-{number}"), core.now)
    for number, length in enumerate(lengths):
        assert compute(core, f"r{number}", length) == []
    core.now = 0.1
    return core


def test_a_group_goes_to_one_worker_and_on_to_the_next_when_that_is_full() -> None:
    core = waiting([LONG] * 5 + [SHORT], num_decode=2)
    core.tell(TimeReached())
    workers = workers_of(core)
    # Four answers of 8 blocks fill one of 32.
    assert workers[:4] == [workers[0]] * 4
    assert workers[4:] == [workers[4]] * 2
    assert workers[0] != workers[4]


def test_each_length_chooses_its_worker_anew() -> None:
    core = waiting([LONG, LONG, SHORT, SHORT], num_decode=2)
    core.tell(TimeReached())
    first, second, third, fourth = workers_of(core)
    assert first == second != third == fourth


def test_what_the_ledger_refuses_of_a_group_waits_again_in_its_place() -> None:
    core = waiting([LONG, LONG, SHORT], num_decode=1)
    core.answers_reserves = False
    asked = of_type(core.tell(TimeReached()), Reserve)
    assert [reserve.num_blocks for reserve in asked] == [8, 8, 4]
    for reserve in asked:
        core.tell(ReservationAnswered(reserve.claim, None))
    in_order = list(core.core.state.generation_queue.in_order())
    assert in_order == [core.task_id(request_id=f"r{number}") for number in range(3)]


def test_callers_who_leave_leave_nothing_in_the_queue() -> None:
    core = waiting([LONG, LONG, SHORT], num_decode=1)
    for number in range(3):
        leave(core, f"r{number}")
    assert_empty(core)
