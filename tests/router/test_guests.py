"""Prompts that wait for room begin in blocks of running answers; what is booked for whom."""

from dataclasses import replace

import pytest

from router.events import EmitFinished, Extend, ExtensionAnswered, ReleaseHolding, Reserve
from router.state import RouterSettings
from router.testing import (
    CoreUnderTest,
    assert_empty,
    commands,
    hello_of,
    of_type,
    spec_of,
    tokens,
)
from scheduling.block_leases import BlocksInherited, LeaseKind, LentPlace
from scheduling.ids import TaskId
from scheduling.lifecycle import Change
from scheduling.messages import (
    AdmitPrompt,
    BlocksRefused,
    CancelTask,
    GrantGrowth,
    GrowthNeeded,
    PrefillStarted,
    TaskReleased,
    WorkerLoad,
)
from scheduling.policies import POLICIES
from scheduling.policy import DeadlineThenOccupancy, Policy, Sharing

MIXED = "mixed-0"
# Of 24 blocks of 4 tokens: 16 for the host, and 8 for whoever comes.
HOST, BIG, SMALL = ("host", 4, 60), ("big", 8, 40), ("small", 5, 16)


# Prompts become guests however room is given to answers; here all of it is given at once. The order
# is that of first tokens: by the whole answer, a short one goes first and needs no host.
COUPLED = replace(POLICIES["ecoserve"], ordering=DeadlineThenOccupancy(), is_decoupled=False)


def new_core(policy: str | Policy = COUPLED, num_blocks: int = 24) -> CoreUnderTest:
    settings = RouterSettings(length_quantum_tokens=4)
    return CoreUnderTest([hello_of(MIXED, num_blocks)], settings, policy)


def ask(core: CoreUnderTest, request: tuple[str, int, int]) -> list[AdmitPrompt]:
    """What the worker is told of prompts when this request has come."""
    return of_type((command for _, command in commands(core.ask(spec_of(*request)))), AdmitPrompt)


def task_of(core: CoreUnderTest, request: tuple[str, int, int]) -> TaskId:
    return core.task_id(request_id=request[0])


def decoding_host(core: CoreUnderTest) -> TaskId:
    (prompt,) = ask(core, HOST)
    assert (prompt.num_blocks, prompt.place) == (16, None)
    core.report(MIXED, PrefillStarted(prompt.task_id), tokens(prompt.task_id, 0, 9))
    return prompt.task_id


def guest(core: CoreUnderTest) -> tuple[TaskId, LentPlace]:
    """The host decodes, `big` waits for room, and `small` begins inside the host."""
    decoding_host(core)
    assert ask(core, BIG) == []
    (prompt,) = ask(core, SMALL)
    assert prompt.place is not None
    return prompt.task_id, prompt.place


# PAPERS 1.4.2: its 16 tokens fit into the second half of what the host has not written.
def test_a_prompt_behind_one_that_has_no_room_begins_inside_a_running_answer() -> None:
    core = new_core()
    task_id, place = guest(core)
    host = task_of(core, HOST)
    assert (place.host_id, place.kind) == (host, LeaseKind.PIPELINE)
    # 5 tokens of the prompt in 2 blocks of its own; 3 slots of these are left for its answer.
    assert (place.num_blocks, place.num_response_tokens) == (4, 16)
    assert 8 <= place.first <= 12
    (*_, reserve) = of_type(core.actions, Reserve)
    assert (reserve.claim.task_id, reserve.num_blocks) == (task_id, 2)
    assert core.core.state.counters.num_guests == 1


def test_nobody_begins_inside_another_while_there_is_room_or_the_policy_lends_nothing() -> None:
    core = new_core(num_blocks=40)
    decoding_host(core)
    assert [prompt.place for prompt in (*ask(core, BIG), *ask(core, SMALL))] == [None, None]
    core = new_core("orca")
    decoding_host(core)
    assert [*ask(core, BIG), *ask(core, SMALL)] == []


def test_a_prompt_whose_answer_fits_into_its_own_last_block_borrows_nothing() -> None:
    mixed = hello_of(MIXED, 24, block_size=8)
    core = CoreUnderTest([mixed], RouterSettings(length_quantum_tokens=4), COUPLED)
    (host,) = ask(core, ("host", 8, 120))
    core.report(MIXED, PrefillStarted(host.task_id), tokens(host.task_id, 0, 9))
    assert ask(core, ("big", 16, 80)) == []
    (prompt,) = ask(core, ("small", 12, 4))
    assert (prompt.num_blocks, prompt.place) == (2, None)


def test_the_same_place_is_proposed_to_one_prompt_only() -> None:
    core = new_core()
    _, first = guest(core)
    places = [first]
    for number in range(4):
        places += [p.place for p in ask(core, (f"more{number}", 1, 10)) if p.place is not None]
    taken = [(p.host_id, p.first + i) for p in places for i in range(p.num_blocks)]
    assert len(taken) == len(set(taken))


def test_a_guest_that_is_refused_waits_again_and_is_not_sent_there_at_once() -> None:
    core = new_core()
    task_id, _ = guest(core)
    actions = core.report(MIXED, BlocksRefused(task_id, 8))
    assert commands(actions) == []
    assert len(of_type(actions, ReleaseHolding)) == 1
    state = core.core.state
    assert (len(state.prompt_queue), state.counters.num_guests_refused) == (2, 1)
    changes = [e.change for e in state.sequence_by_task[task_id].timeline.entries]
    assert changes[-1] is Change.PLACE_LOST
    host = task_of(core, HOST)
    assert ask(core, ("other", 1, 10)) == []
    core.report(MIXED, tokens(host, 1, 1, 2, 3, 4))
    sent = ask(core, ("another", 1, 10))
    assert task_id in {prompt.task_id for prompt in sent}, "the host is a block further"


def test_a_worker_that_is_full_is_not_refused_for_a_guest() -> None:
    """Only its place was gone: others may go there at once."""
    core = new_core()
    task_id, _ = guest(core)
    core.report(MIXED, BlocksRefused(task_id, 8))
    view = next(iter(core.core.state.fleet))
    assert view.paused_until_s == 0.0


def test_what_a_guest_inherits_is_booked_for_it_and_no_growth_is_granted_for_that() -> None:
    core = new_core()
    task_id, place = guest(core)
    core.report(MIXED, PrefillStarted(task_id), tokens(task_id, 0, 7))
    host = task_of(core, HOST)
    last = tokens(host, 1, 5, finish="stop")
    inherited = BlocksInherited(task_id, place.num_blocks)
    actions = core.report(MIXED, last, inherited, TaskReleased(host), load=WorkerLoad(18, 1, 0, 0))
    (extend,) = of_type(actions, Extend)
    assert (extend.claim.task_id, extend.num_blocks, extend.is_inherited) == (task_id, 4, True)
    leg = core.core.state.legs.get(task_id, "decode")
    assert leg is not None
    assert (leg.num_blocks, leg.num_borrowed_blocks, leg.place) == (6, 0, None)
    for granted in (True, False):
        answered = ExtensionAnswered(extend.claim, 4, granted, is_inherited=True)
        assert of_type((c for _, c in commands(core.tell(answered))), GrantGrowth) == []
    assert not next(iter(core.core.state.fleet)).is_starving
    core.report(MIXED, GrowthNeeded(task_id, 1))
    growth = ExtensionAnswered(extend.claim, 1, True)
    assert commands(core.tell(growth)) == [(MIXED, GrantGrowth(task_id, 1))]


def test_a_worker_that_lets_a_task_inherit_more_than_it_borrowed_is_not_believed() -> None:
    core = new_core()
    task_id, place = guest(core)
    sent = core.report(MIXED, BlocksInherited(task_id, place.num_blocks + 1))
    assert (MIXED, CancelTask(task_id, "the task is computed again")) in commands(sent)


def test_a_guest_that_ends_says_what_it_borrowed_and_leaves_nothing() -> None:
    core = new_core()
    task_id, place = guest(core)
    core.report(MIXED, PrefillStarted(task_id), tokens(task_id, 0, 7))
    ended = core.report(MIXED, tokens(task_id, 1, 8, finish="stop"), TaskReleased(task_id))
    (finished,) = of_type(ended, EmitFinished)
    assert finished.timings.num_blocks_borrowed == place.num_blocks
    assert next(iter(core.core.state.fleet)).places_by_host == {}
    for request in (HOST, BIG):
        task = task_of(core, request)
        if request == BIG:
            core.report(MIXED, PrefillStarted(task))
        core.report(MIXED, tokens(task, int(request == HOST), 8, finish="stop"), TaskReleased(task))
    assert_empty(core)


def test_guests_overtake_one_that_waits_for_room_only_so_often() -> None:
    core = new_core()
    decoding_host(core)
    ask(core, BIG)
    num_guests = 0
    for number in range(100):
        for prompt in ask(core, (f"small{number}", 1, 10)):
            num_guests += 1
            task = prompt.task_id
            core.report(MIXED, PrefillStarted(task))
            core.report(MIXED, tokens(task, 0, 1, finish="stop"), TaskReleased(task))
    assert num_guests == 64


# PAPERS 2.2b: it is "cut" where unallocated KVC is short as well.
@pytest.mark.parametrize(("least_share", "num_blocks"), [(0.25, 5), (0.5, 7), (1.0, None)])
def test_a_prompt_without_room_for_all_of_its_answer_begins_with_a_share_of_it(
    least_share: float, num_blocks: int | None
) -> None:
    policy = replace(POLICIES["cacheopt"], least_share=least_share, sharing=Sharing.NONE)
    core = new_core(policy, num_blocks=24)
    assert [prompt.num_blocks for prompt in ask(core, ("first", 4, 60))] == [16]
    # 12 blocks are for all of it, and 8 are left.
    given = [prompt.num_blocks for prompt in ask(core, ("cut", 8, 40))]
    assert given == ([] if num_blocks is None else [num_blocks])


# PAPERS 2.4.2: by best fit, all but one block of the prompt and its answer in the host's end.
@pytest.mark.parametrize(("num_response", "is_embedded"), [(8, True), (20, False)])
def test_a_prompt_is_embedded_in_the_end_of_an_answer_before_it_takes_free_blocks(
    num_response: int, is_embedded: bool
) -> None:
    core = new_core("cacheopt", num_blocks=40)
    decoding_host(core)
    (prompt,) = ask(core, ("small", 14, num_response))
    if not is_embedded:
        assert (prompt.num_blocks, prompt.place) == (9, None)
        return
    assert prompt.place is not None
    assert prompt.place.kind is LeaseKind.EMBEDDING
    assert (prompt.num_blocks, prompt.place.first, prompt.place.num_blocks) == (1, 11, 5)
