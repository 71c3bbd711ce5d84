"""When a router asks a worker to let answers wait for an urgent prompt, and what it does then."""

from collections.abc import Callable

import pytest

from router.events import (
    Action,
    CallerLeft,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    TimeReached,
    WorkerConnected,
    WorkerLost,
)
from router.room_wishes import ANSWER_S, MAX_WISHES, REFUSED_S
from router.state import RouterSettings
from router.testing import CoreUnderTest, commands, hello_of, of_type, spec_of, tokens
from scheduling.ids import Incarnation, RequestId, WorkerId
from scheduling.making_room import URGENT_SHARE
from scheduling.messages import (
    AdmitPrompt,
    MakeRoom,
    PrefillStarted,
    ResumeGeneration,
    RoomMade,
    SwappedOut,
    TaskReleased,
    WorkerHello,
    WorkerLoad,
)
from scheduling.policy_settings import policy_of

MIXED, SECOND = "mixed-0", "mixed-1"
# A prompt may wait for a second: from so much of it on it is urgent.
CALM_S, URGENT_S, LATE_S = URGENT_SHARE - 0.05, URGENT_SHARE + 0.02, 1.2


def new_core(*workers: str, makes_room: bool = True, policy: str = "accelgen") -> CoreUnderTest:
    """Workers with 16 blocks of 4 tokens; an answer holds ten of each."""
    hellos = [hello_of(worker, makes_room=makes_room) for worker in workers or (MIXED,)]
    core = CoreUnderTest(hellos, policy=policy_of(f"{policy}+urgent_preempts=yes"))
    for number in range(len(hellos)):
        ask(core, f"long-{number}", num_prompt=38, tpot_s=1000.0)
        task = core.task_id(request_id=f"long-{number}")
        core.report(hellos[number].worker_id, PrefillStarted(task), tokens(task, 0, 1))
    return core


def crowded(free_by_worker: dict[str, int], *hellos: WorkerHello) -> CoreUnderTest:
    """Workers with so many free blocks: the answers that hold the others are another router's."""
    core = CoreUnderTest(hellos, policy=policy_of("accelgen"))
    for worker, num_free in free_by_worker.items():
        core.report(worker, load=full(num_free))
    return core


def new_core_with_small() -> CoreUnderTest:
    """There is an answer too that needs less room than the prompts."""
    core = new_core()
    ask(core, "small", num_prompt=6, tpot_s=1000.0, max_tokens=8)
    small = core.task_id(request_id="small")
    core.report(MIXED, PrefillStarted(small), tokens(small, 0, 1), load=full(2))
    return core


def ask(
    core: CoreUnderTest,
    name: str,
    num_prompt: int = 30,
    ttft_s: float = 1.0,
    tpot_s: float = 0.1,
    max_tokens: int = 20,
    deadline_s: float | None = None,
) -> list[Action]:
    goals = {"ttft_s": ttft_s, "tpot_s": tpot_s, "deadline_s": deadline_s}
    return core.ask(spec_of(name, num_prompt, max_tokens, **goals))


def look(core: CoreUnderTest, at_s: float) -> list[Action]:
    """What the core does at that instant."""
    core.now = at_s
    return core.tell(TimeReached())


def wishes(actions: list[Action]) -> list[tuple[str, MakeRoom]]:
    found = commands(actions)
    return [(worker, each) for worker, each in found if isinstance(each, MakeRoom)]


def admitted(actions: list[Action]) -> list[str]:
    """The requests whose prompts go to a worker."""
    found = (command for _, command in commands(actions) if isinstance(command, AdmitPrompt))
    return [command.task_id.partition("/")[0] for command in found]


def full(num_free: int = 0, due_in_s: float | None = None) -> WorkerLoad:
    parked = 0 if due_in_s is None else 1
    return WorkerLoad(num_free, 1, 0, 0, num_parked=parked, parked_due_in_s=due_in_s)


def test_a_prompt_without_room_asks_for_what_it_lacks_once_it_cannot_wait_any_longer() -> None:
    core = new_core()
    assert not wishes(ask(core, "short"))
    assert not wishes(look(core, CALM_S))
    ((worker, wish),) = wishes(look(core, URGENT_S))
    # It wants 8 blocks, and 6 are free.
    assert (worker, wish.task_id) == (MIXED, core.task_id(request_id="short"))
    assert wish.num_blocks == 2
    assert wish.due_in_s == pytest.approx(1.0 - URGENT_S)
    assert not wishes(look(core, URGENT_S + 0.05)), "the worker has not answered"


def test_what_an_answer_gave_back_goes_to_the_prompt_and_not_to_the_answer() -> None:
    core = new_core()
    ask(core, "short")
    look(core, URGENT_S)
    parked, urgent = core.task_id(request_id="long-0"), core.task_id(request_id="short")
    actions = core.report(
        MIXED, SwappedOut(parked, 10), RoomMade(urgent, 10), load=full(16, due_in_s=30.0)
    )
    assert of_type(actions, ReleaseHolding)
    assert admitted(actions) == ["short"]
    (reserve,) = of_type(actions, Reserve)
    assert actions.index(of_type(actions, ReleaseHolding)[0]) < actions.index(reserve)
    assert not of_type([command for _, command in commands(actions)], ResumeGeneration)


def test_no_parked_answer_goes_on_before_the_worker_has_answered() -> None:
    core = new_core_with_small()
    ask(core, "short")
    look(core, URGENT_S)
    parked = core.task_id(request_id="small")
    # There would be room for it again, and none for the prompt: the worker has only begun.
    actions = core.report(MIXED, SwappedOut(parked, 2), load=full(7, due_in_s=30.0))
    assert not of_type(actions, Reserve)


def test_an_answer_that_the_worker_misjudged_goes_on_before_the_prompt() -> None:
    """Its request must end soon, which a worker does not know."""
    core = new_core()
    ask(core, "hasty", num_prompt=6, tpot_s=10.0, max_tokens=8, deadline_s=1.0)
    hasty = core.task_id(request_id="hasty")
    core.report(MIXED, PrefillStarted(hasty), tokens(hasty, 0, 1), load=full(4))
    ask(core, "short")
    look(core, URGENT_S)
    made = RoomMade(core.task_id(request_id="short"), 3)
    actions = core.report(MIXED, SwappedOut(hasty, 2), made, load=full(6, due_in_s=30.0))
    assert not admitted(actions)
    assert [reserve.claim.task_id for reserve in of_type(actions, Reserve)] == [hasty]


@pytest.mark.parametrize("ttft_s", [1000.0, 0.001])
def test_a_prompt_that_can_wait_or_is_too_late_asks_for_nothing(ttft_s: float) -> None:
    core = new_core()
    asked = ask(core, "short", ttft_s=ttft_s)
    assert not wishes([*asked, *look(core, URGENT_S), *look(core, LATE_S)])


def test_a_worker_that_refused_is_left_alone_for_a_while_and_another_is_asked() -> None:
    core = new_core(MIXED, SECOND)
    ask(core, "short", ttft_s=10.0)
    ((first, wish),) = wishes(look(core, 10 * URGENT_S))
    ((second, again),) = wishes(core.report(first, RoomMade(wish.task_id, 0)))
    assert {first, second} == {MIXED, SECOND}
    assert again.task_id == wish.task_id
    assert not wishes(core.report(second, RoomMade(wish.task_id, 0)))
    assert not wishes(look(core, 10 * URGENT_S + REFUSED_S / 2))
    assert len(wishes(look(core, 10 * URGENT_S + REFUSED_S))) == 1


def test_a_prompt_that_gets_nothing_of_what_is_given_back_asks_a_few_times_only() -> None:
    core = new_core()
    ask(core, "short")
    found = wishes(look(core, URGENT_S))
    for _ in range(2 * MAX_WISHES):
        made = RoomMade(core.task_id(request_id="short"), 2)
        found += wishes(core.report(MIXED, made, load=full(0)))
    assert len(found) == MAX_WISHES


def refused_by_worker(core: CoreUnderTest, wish: MakeRoom) -> list[Action]:
    core.report(MIXED, RoomMade(wish.task_id, 0))
    return look(core, core.now + REFUSED_S)


def refused_by_ledger(core: CoreUnderTest, wish: MakeRoom) -> list[Action]:
    core.answers_reserves = False
    made = core.report(MIXED, RoomMade(wish.task_id, 2), load=full(8))
    (reserve,) = of_type(made, Reserve)
    core.report(MIXED, load=full(0))
    core.tell(ReservationAnswered(reserve.claim, None, None))
    return look(core, core.now + REFUSED_S)


def overtaken(core: CoreUnderTest, wish: MakeRoom) -> list[Action]:
    ask(core, "hasty", ttft_s=0.1)
    core.report(MIXED, RoomMade(wish.task_id, 2), load=full(0))
    ((_, of_other),) = wishes(look(core, core.now + 0.1 * URGENT_S))
    core.report(MIXED, RoomMade(of_other.task_id, 2), load=full(0))
    return core.tell(CallerLeft(RequestId("hasty")))


@pytest.mark.parametrize("between", [refused_by_worker, refused_by_ledger, overtaken])
def test_no_prompt_asks_more_often_whatever_comes_between(
    between: Callable[[CoreUnderTest, MakeRoom], list[Action]],
) -> None:
    core = crowded({MIXED: 0}, hello_of(MIXED, makes_room=True))
    ask(core, "short", ttft_s=100.0)
    task = core.task_id(request_id="short")
    ((_, wish),) = wishes(look(core, 100 * URGENT_S))
    num_wishes = 1
    for _ in range(2 * MAX_WISHES):
        found = wishes(between(core, wish))
        assert [each.task_id for _, each in found] in ([task], [])
        num_wishes += len(found)
    assert num_wishes == MAX_WISHES


def test_a_worker_that_says_nothing_keeps_nobody_from_asking_another_for_long() -> None:
    core = new_core(MIXED, SECOND)
    ask(core, "short", ttft_s=20.0)
    ((first, wish),) = wishes(look(core, 20 * URGENT_S))
    assert not wishes(look(core, 20 * URGENT_S + 0.9 * ANSWER_S))
    ((second, again),) = wishes(look(core, 20 * URGENT_S + ANSWER_S))
    assert {first, second} == {MIXED, SECOND}
    assert again.task_id == wish.task_id
    ask(core, "hasty", ttft_s=0.5)
    # What the first says at last is no word of the second.
    assert not wishes(core.report(first, RoomMade(wish.task_id, 0)))
    core.report(second, RoomMade(wish.task_id, 0))
    ((third, _),) = wishes(look(core, core.now + 0.5 * URGENT_S))
    assert third == second, "the first is left alone for longer than one that refused"


def test_a_worker_may_answer_late_while_nobody_else_can_be_asked() -> None:
    core = new_core_with_small()
    ask(core, "short", ttft_s=100.0)
    assert wishes(look(core, 100 * URGENT_S))
    assert not wishes(look(core, 100 * URGENT_S + 1.5 * ANSWER_S))
    small, long = core.task_id(request_id="small"), core.task_id(request_id="long-0")
    # There would be room for it again, and none for the prompt: it is still the prompt's.
    actions = core.report(MIXED, SwappedOut(small, 2), load=full(7, due_in_s=100.0))
    assert not of_type(actions, Reserve)
    made = RoomMade(core.task_id(request_id="short"), 12)
    actions = core.report(MIXED, SwappedOut(long, 10), made, load=full(16, due_in_s=100.0))
    assert admitted(actions) == ["short"]


def test_who_is_too_late_by_now_keeps_no_room_from_a_parked_answer() -> None:
    core = new_core_with_small()
    ask(core, "short")
    look(core, URGENT_S)
    parked, made = core.task_id(request_id="small"), RoomMade(core.task_id(request_id="short"), 2)
    actions = core.report(MIXED, SwappedOut(parked, 2), made, load=full(7, due_in_s=30.0))
    assert not of_type(actions, Reserve)
    (reserve,) = of_type(look(core, LATE_S), Reserve)
    assert reserve.claim.task_id == parked


def test_a_wish_is_forgotten_with_its_prompt() -> None:
    core = new_core()
    ask(core, "short")
    look(core, URGENT_S)
    gone = core.task_id(request_id="short")
    core.tell(CallerLeft(RequestId("short")))
    ask(core, "next", ttft_s=0.05)
    # Nobody waits for the answer to the first any more.
    ((_, wish),) = wishes(look(core, 1.05 * URGENT_S))
    assert wish.task_id == core.task_id(request_id="next")
    assert not wishes(core.report(MIXED, RoomMade(gone, 0)))
    state = core.core.state
    assert state.room_wish is not None
    assert not state.room_wish.is_answered


def lose(core: CoreUnderTest, worker: str) -> list[Action]:
    """Without its answer, which would go before newcomers."""
    requests = core.core.state.request_by_id
    (long,) = [each for each in requests if requests[each].sequences[0].decode_worker == worker]
    core.tell(CallerLeft(long))
    return core.tell(WorkerLost(WorkerId(worker), Incarnation(1)))


def test_a_wish_is_forgotten_with_its_worker() -> None:
    core = new_core(MIXED, SECOND)
    ask(core, "short")
    ((first, _),) = wishes(look(core, URGENT_S))
    ((second, _),) = wishes(lose(core, first))
    assert second != first


def test_a_wish_outlasts_the_loss_of_another_worker() -> None:
    core = new_core(MIXED, SECOND)
    ask(core, "short")
    ((worker, _),) = wishes(look(core, URGENT_S))
    assert not wishes(lose(core, SECOND if worker == MIXED else MIXED))


def test_a_worker_in_a_new_life_is_asked_anew() -> None:
    """It knows nothing of what it was asked before."""
    core = crowded({MIXED: 0}, hello_of(MIXED, makes_room=True))
    ask(core, "short", ttft_s=10.0)
    assert wishes(look(core, 10 * URGENT_S))
    core.answers_reserves = False
    (reserve,) = of_type(
        core.tell(WorkerConnected(hello_of(MIXED, life=2, makes_room=True))), Reserve
    )
    # Another router was faster.
    core.report(MIXED, load=full(0))
    core.tell(ReservationAnswered(reserve.claim, None, None))
    assert len(wishes(look(core, 10 * URGENT_S + ANSWER_S / 2))) == 1


def test_what_ends_by_itself_meanwhile_is_as_good() -> None:
    core = new_core()
    ask(core, "short")
    look(core, URGENT_S)
    ended = core.task_id(request_id="long-0")
    core.tell(CallerLeft(RequestId("long-0")))
    actions = core.report(MIXED, TaskReleased(ended), load=full(16))
    assert admitted(actions) == ["short"]


def test_what_running_answers_hold_of_the_growth_reserve_is_lacking_too() -> None:
    core = crowded({MIXED: 0}, hello_of(MIXED, 24, makes_room=True, num_growth_blocks=4))
    ask(core, "short")
    ((_, wish),) = wishes(look(core, URGENT_S))
    assert wish.num_blocks == 8 + 4
    made = RoomMade(wish.task_id, wish.num_blocks)
    assert admitted(core.report(MIXED, made, load=full(wish.num_blocks))) == ["short"]


@pytest.mark.parametrize("nearest", [MIXED, SECOND])
def test_the_worker_that_lacks_the_fewest_blocks_is_asked(nearest: str) -> None:
    free = {MIXED: 2, SECOND: 2} | {nearest: 5}
    core = crowded(free, *[hello_of(worker, makes_room=True) for worker in free])
    ask(core, "short")
    ((worker, wish),) = wishes(look(core, URGENT_S))
    assert (worker, wish.num_blocks) == (nearest, 3)


@pytest.mark.parametrize(
    ("small", "num_free"),
    [
        # What newcomers get of all its blocks is less than the prompt wants.
        (hello_of(MIXED, num_growth_blocks=9, makes_room=True), 16),
        # It could hold the prompt, but not the longest answer with it.
        (hello_of(MIXED, num_blocks=12, makes_room=True), 6),
    ],
)
def test_a_worker_that_is_too_small_for_it_is_not_asked(small: WorkerHello, num_free: int) -> None:
    core = crowded({MIXED: num_free, SECOND: 0}, small, hello_of(SECOND, makes_room=True))
    ask(core, "short")
    ((worker, wish),) = wishes(look(core, URGENT_S))
    assert (worker, wish.num_blocks) == (SECOND, 8)


def test_a_worker_with_prompts_enough_is_not_asked_before_it_has_computed_them() -> None:
    """The prompt would not go there, whatever room is made."""
    core = CoreUnderTest(
        [hello_of(MIXED, makes_room=True)], RouterSettings(max_backlog_tokens=8), "accelgen"
    )
    ask(core, "long", num_prompt=38, ttft_s=100.0, tpot_s=10.0)
    ask(core, "short")
    assert not wishes(look(core, URGENT_S))
    task = core.task_id(request_id="long")
    assert len(wishes(core.report(MIXED, PrefillStarted(task), tokens(task, 0, 1)))) == 1


def test_a_prompt_that_goes_on_from_a_lost_router_asks_like_any_other() -> None:
    core = new_core()
    core.ask(spec_of("again", 30, 20, ttft_s=1.0, tpot_s=0.1, resumed=((11, 12, 13),)))
    assert not wishes(look(core, CALM_S))
    ((_, wish),) = wishes(look(core, URGENT_S))
    assert wish.task_id == core.task_id(request_id="again")


@pytest.mark.parametrize(
    "core",
    [
        new_core(makes_room=False),
        # Rooms for prompts and for answers apart: what is lacking is not the same.
        new_core(policy="ecoserve+parked_yields=yes"),
    ],
)
def test_nobody_else_is_asked(core: CoreUnderTest) -> None:
    ask(core, "short")
    assert not wishes(look(core, URGENT_S))


def test_without_the_choice_nothing_is_asked_for() -> None:
    core = CoreUnderTest([hello_of(MIXED, makes_room=True)], policy="default")
    ask(core, "long", num_prompt=38)
    ask(core, "short")
    assert not wishes(look(core, URGENT_S))
