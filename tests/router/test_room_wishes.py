"""When a router asks a worker to let answers wait for an urgent prompt, and what it does then."""

import pytest

from router.events import (
    Action,
    CallerLeft,
    ReleaseHolding,
    Reserve,
    TimeReached,
    WorkerLost,
)
from router.room_wishes import MAX_WISHES, REFUSED_S
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
        ask(core, f"long-{number}", num_prompt=38, tpot_s=10.0)
        task = core.task_id(request_id=f"long-{number}")
        core.report(hellos[number].worker_id, PrefillStarted(task), tokens(task, 0, 1))
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
    core = new_core()
    ask(core, "short")
    look(core, URGENT_S)
    parked = core.task_id(request_id="long-0")
    # There would be room for it again, and none for the prompt: the worker has only begun.
    actions = core.report(MIXED, SwappedOut(parked, 10), load=full(7, due_in_s=30.0))
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


def test_a_wish_is_forgotten_with_its_prompt() -> None:
    core = new_core()
    ask(core, "short")
    look(core, URGENT_S)
    gone = core.task_id(request_id="short")
    core.tell(CallerLeft(RequestId("short")))
    ask(core, "next")
    # Nobody waits for the answer to the first any more.
    ((_, wish),) = wishes(look(core, 2 * URGENT_S))
    assert wish.task_id == core.task_id(request_id="next")
    assert not wishes(core.report(MIXED, RoomMade(gone, 0)))
    state = core.core.state
    assert state.room_wish is not None
    assert not state.room_wish.is_answered


def test_a_wish_is_forgotten_with_its_worker() -> None:
    core = new_core(MIXED, SECOND)
    ask(core, "short")
    ((first, _),) = wishes(look(core, URGENT_S))
    # The answers of a worker that is lost go before newcomers.
    requests = core.core.state.request_by_id
    (long,) = [each for each in requests if requests[each].sequences[0].decode_worker == first]
    core.tell(CallerLeft(long))
    lost = core.tell(WorkerLost(WorkerId(first), Incarnation(1)))
    ((second, _),) = wishes(lost)
    assert second != first


def test_what_ends_by_itself_meanwhile_is_as_good() -> None:
    core = new_core()
    ask(core, "short")
    look(core, URGENT_S)
    ended = core.task_id(request_id="long-0")
    core.tell(CallerLeft(RequestId("long-0")))
    actions = core.report(MIXED, TaskReleased(ended), load=full(16))
    assert admitted(actions) == ["short"]


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
