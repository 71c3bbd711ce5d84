"""A guest begins in blocks of a running answer if they are still to be had, and nobody overwrites
anybody: hosts that meet their guests, hosts and guests that end, in any order."""

import pytest

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.batching_rules import FillToTarget
from scheduling.block_leases import BlocksInherited, LeaseKind, LentPlace
from scheduling.ids import BlockId, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitPrompt,
    BlocksRefused,
    CancelTask,
    Command,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    PrefillStarted,
    Report,
    SequenceSpec,
    SwappedOut,
    TaskReleased,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CommandArrived,
    LoadSequence,
    ReplaceBlocks,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFinished,
    WorkerAction,
)

SESSION, OTHER = SessionId(1), SessionId(2)
HOST, GUEST, THIRD = TaskId("host/0"), TaskId("guest/0"), TaskId("third/0")
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("mixed-0"), Incarnation(1), "h")
SIZE = 4


class Worker(DecodeCore):
    """It remembers who is in which slot."""

    def __init__(self, settings: DecodeSettings) -> None:
        super().__init__(settings, EXPORT)
        self.task_by_slot: dict[int, TaskId] = {}
        # By the first token of its prompt.
        self.task_by_token: dict[int, TaskId] = {}


def new_core(num_blocks: int = 24, num_swap_blocks: int = 0) -> Worker:
    settings = DecodeSettings(
        num_blocks,
        SIZE,
        max_num_seqs=4,
        growth_blocks=1,
        num_swap_blocks=num_swap_blocks,
        batching=FillToTarget(32),
    )
    return Worker(settings)


def send(core: Worker, command: Command, session: SessionId = SESSION) -> list[WorkerAction]:
    actions = core.handle(CommandArrived(session, command))
    core.check_invariants()
    return actions


def spec_of(task_id: TaskId, num_prompt: int) -> SequenceSpec:
    first = 1000 * sum(task_id.encode())
    prompt = tuple(range(first, first + num_prompt))
    return SequenceSpec(prompt, (), SamplingParams(), StopParams(60))


def admit(
    core: Worker,
    task_id: TaskId,
    num_prompt: int,
    num_blocks: int,
    place: LentPlace | None = None,
    session: SessionId = SESSION,
) -> None:
    sequence = spec_of(task_id, num_prompt)
    core.task_by_token[sequence.prompt_token_ids[0]] = task_id
    assert send(core, AdmitPrompt(task_id, sequence, num_blocks, place=place), session) == []


def place(
    first: int, num_blocks: int, num_response: int, kind: LeaseKind = LeaseKind.PIPELINE
) -> LentPlace:
    return LentPlace(HOST, first, num_blocks, num_response, kind)


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def step(core: Worker, ending: TaskId | None = None) -> tuple[set[TaskId], list[WorkerAction]]:
    """One iteration: who computed something, and all actions. The task `ending` gets its last."""
    actions, plan = core.plan(0.0)
    assert plan is not None
    for action in actions:
        if isinstance(action, LoadSequence):
            core.task_by_slot[action.start.slot] = core.task_by_token[action.start.token_ids[0]]
    by_slot = core.task_by_slot
    computed = {by_slot[chunk.slot] for chunk in plan.chunks}
    outputs = tuple(
        SampledOutput(c.slot, 8, "y", finish_reason="stop" if by_slot[c.slot] == ending else None)
        for c in plan.chunks
        if c.samples
    )
    core.check_invariants()
    actions = actions + core.handle(StepFinished(outputs))
    core.check_invariants()
    return computed, actions


def host_and_guest(core: Worker, guest_session: SessionId = SESSION) -> list[WorkerAction]:
    """A host of one prompt block and 15 for its answer; a guest with 4 of its own in the last 7."""
    admit(core, HOST, num_prompt=4, num_blocks=16)
    step(core)
    admit(core, GUEST, 5, 4, place(9, 7, num_response=26), guest_session)
    _, actions = step(core)
    assert PrefillStarted(GUEST, 0) in reports(actions)
    return actions


# PAPERS 1.4.1.
def test_a_guest_answers_in_blocks_of_its_host_and_takes_none_for_it() -> None:
    core = new_core()
    (load,) = (a for a in host_and_guest(core) if isinstance(a, LoadSequence))
    assert load.start.block_table == (16, 17, 18, 19, *core.pool.blocks_of(HOST)[9:])
    assert core.pool.num_free_blocks == 24 - 16 - 4
    assert core.lending.num_begun == 1
    for _ in range(20):
        computed, _ = step(core)
        assert computed == {HOST, GUEST}
        for position, block_id in enumerate(core.pool.blocks_of(HOST)):
            writers = [t for t in (HOST, GUEST) if block_id in core.pool.blocks_of(t)]
            may = [
                t for t in writers if core.pool.may_write(t, core.pool.blocks_of(t).index(block_id))
            ]
            assert may == ([HOST] if position < 9 else [GUEST])


# PAPERS 1.4.2: 60 tokens are left of the host when it has written 4; half of them, less a block.
@pytest.mark.parametrize(("num_response", "is_taken"), [(26, True), (27, False)])
def test_a_guest_that_is_a_token_too_long_is_refused_when_it_would_begin(
    num_response: int, is_taken: bool
) -> None:
    core = new_core()
    admit(core, HOST, num_prompt=4, num_blocks=16)
    step(core)
    step(core)
    step(core)  # the host has written 6 tokens; its head comes to block 9 in 30 iterations
    admit(core, GUEST, 4, 1, place(9, 7, num_response))
    computed, actions = step(core)
    assert (GUEST in computed) == is_taken
    if not is_taken:
        assert BlocksRefused(GUEST, 8) in reports(actions)
        assert core.num_tasks == 1
        assert core.load.num_backlog_tokens == 0


@pytest.mark.parametrize(
    "gone",
    ["host is unknown", "host has ended", "host has come", "place is lent", "table is short"],
)
def test_a_place_that_is_gone_is_refused_and_holds_nobody_up(gone: str) -> None:
    core = new_core()
    wanted = place(9, 7, num_response=26)
    if gone != "host is unknown":
        admit(core, HOST, num_prompt=4, num_blocks=15 if gone == "table is short" else 16)
        step(core, ending=HOST if gone == "host has ended" else None)
    if gone == "place is lent":
        admit(core, TaskId("first/0"), 5, 2, wanted)
        step(core)
    for _ in range(10 if gone == "host has come" else 0):
        step(core)
    admit(core, GUEST, 5, 2, wanted)
    admit(core, THIRD, 6, 2)
    computed, actions = step(core)
    assert BlocksRefused(GUEST, core.pool.num_free_blocks + 2) in reports(actions)
    assert THIRD in computed, "the next in line begins in the same iteration, or nothing would run"
    assert core.lending.num_refused == 1


def test_a_guest_waits_for_a_host_that_has_not_begun_either() -> None:
    core = new_core(num_blocks=20)
    admit(core, THIRD, 60, 16)
    step(core)
    admit(core, HOST, num_prompt=4, num_blocks=16)
    admit(core, GUEST, 5, 2, place(9, 7, num_response=20))
    computed, _ = step(core)
    assert computed == {THIRD}, "the host has no room"
    send(core, CancelTask(THIRD, "over"))
    assert step(core)[0] == {HOST}
    assert step(core)[0] == {HOST, GUEST}
    assert core.lending.num_begun == 1


# PAPERS 1.4.3: the reserve comes first; the host asks before it meets its guest.
def test_a_host_near_a_guest_that_runs_over_gets_another_block_in_its_place() -> None:
    core = new_core()
    host_and_guest(core)
    lent, asked = core.pool.blocks_of(HOST)[9], 0
    while not asked:
        computed, actions = step(core)
        asked = reports(actions).count(GrowthNeeded(HOST, 1))
        assert computed == {HOST, GUEST}
    replaced = send(core, GrantGrowth(HOST, 1))
    (swap,) = (action for action in replaced if isinstance(action, ReplaceBlocks))
    assert (swap.first_index, swap.block_ids) == (9, (BlockId(20),))
    assert reports(replaced) == [BlocksInherited(GUEST, 1)]
    assert lent in core.pool.blocks_of(GUEST)
    assert core.pool.num_charged_blocks_of(GUEST) == 5
    for _ in range(4):
        computed, _ = step(core)
        assert HOST in computed


# PAPERS 1.4.3: without a reserve the host waits with its KV, and takes nobody's place.
def test_a_host_that_gets_no_block_waits_for_its_guest_to_end() -> None:
    core = new_core()
    host_and_guest(core)
    computed = {HOST}
    while HOST in computed:
        computed, actions = step(core)
        if GrowthNeeded(HOST, 1) in reports(actions):
            send(core, GrantGrowth(HOST, 0))
    assert computed == {GUEST}
    _, actions = step(core, ending=GUEST)
    assert TaskReleased(GUEST) in reports(actions)
    assert core.pool.num_lent_blocks == 0
    computed, _ = step(core)
    assert computed == {HOST}


# PAPERS 1.4.3: only where both wait somebody has to go; the other then has room.
@pytest.mark.parametrize("num_swap_blocks", [0, 30])
def test_where_host_and_guest_both_wait_the_cheaper_one_makes_room(num_swap_blocks: int) -> None:
    core = new_core(num_blocks=20, num_swap_blocks=num_swap_blocks)
    host_and_guest(core)
    for _ in range(39):
        for report in reports(step(core)[1]):
            if isinstance(report, GrowthNeeded):
                send(core, GrantGrowth(report.task_id, 0))
    actions, plan = core.plan(0.0)
    news = reports(actions)
    gone = SwappedOut(HOST, 9) if num_swap_blocks else Preempted(HOST)
    assert gone in news, "it has fewer tokens"
    assert BlocksInherited(GUEST, 7) in news
    assert news[-1] == GrowthNeeded(GUEST, 1)
    assert plan is None
    send(core, GrantGrowth(GUEST, 1))
    assert step(core)[0] == {GUEST}


def test_a_guest_keeps_what_its_host_leaves_and_the_router_hears_of_it_first() -> None:
    core = new_core()
    host_and_guest(core, guest_session=OTHER)
    _, actions = step(core, ending=HOST)
    inherited = actions.index(SendReport(OTHER, BlocksInherited(GUEST, 7)))
    assert actions[inherited + 1] == SendReport(SESSION, TaskReleased(HOST))
    assert core.pool.num_free_blocks == 24 - 11
    computed, _ = step(core)
    assert computed == {GUEST}


def test_a_guest_whose_router_is_gone_gives_its_place_back_to_the_host() -> None:
    core = new_core()
    host_and_guest(core, guest_session=OTHER)
    core.handle(SessionLost(OTHER))
    core.check_invariants()
    assert (core.pool.num_lent_blocks, core.num_tasks) == (0, 1)
    for _ in range(50):
        computed, actions = step(core)
        assert computed == {HOST}
        assert not any(isinstance(report, GrowthNeeded) for report in reports(actions)[:-1])


# PAPERS 2.4.2: prompt and answer of the guest in the host's last blocks, its first block its own.
@pytest.mark.parametrize(("num_response", "is_taken"), [(10, True), (11, False)])
def test_an_embedded_guest_must_end_eight_tokens_before_its_host_comes(
    num_response: int, is_taken: bool
) -> None:
    core = new_core()
    admit(core, HOST, num_prompt=4, num_blocks=16)
    for _ in range(3):
        step(core)  # it has written 6 tokens, and is to come to block 6 in 18 iterations
    admit(core, GUEST, 27, 1, place(6, 10, num_response, LeaseKind.EMBEDDING))
    computed, actions = step(core)
    assert (GUEST in computed) == is_taken
    assert (BlocksRefused(GUEST, 8) in reports(actions)) != is_taken
    if is_taken:
        assert core.pool.num_free_blocks == 24 - 16 - 1
        assert core.pool.blocks_of(GUEST)[1:] == core.pool.blocks_of(HOST)[6:]


def test_nobody_shares_or_waits_for_a_prompt_that_lies_in_lent_blocks() -> None:
    core = new_core()
    admit(core, HOST, num_prompt=4, num_blocks=16)
    step(core)
    admit(core, GUEST, 16, 1, place(7, 9, 8, LeaseKind.EMBEDDING))
    step(core)
    send(core, AdmitPrompt(THIRD, spec_of(GUEST, 16), 5))
    _, actions = step(core)
    assert PrefillStarted(THIRD, 4) in reports(actions), "only the guest's own block is shared"
    step(core)
