"""Room for an urgent prompt: a mixed worker is asked to let answers wait that can.

The router knows which prompt is about to be late, a worker how far each of its answers is ahead of
its goal. So the router says how many blocks are lacking, and the worker has the last word. What it
gives back is booked for nobody: the prompt is then placed like any other, and the ledger decides.
Until then no answer that waits in host memory there goes on. One wish at a time.
Source: AccelGen, urgent requests.
"""

from router.admission import decode_blocks
from router.events import Action, SendCommand
from router.sequence import Sequence
from router.state import RoomWish, RouterState
from router.worker_view import WorkerView, may_be_asked
from scheduling.ids import WorkerId
from scheduling.making_room import is_urgent
from scheduling.messages import MakeRoom, RoomMade

# A worker where nobody could wait is left alone for so long.
REFUSED_S = 0.1
# One that has said nothing for so long keeps nobody from asking others, and is left alone itself
# for as long again.
ANSWER_S = 1.0
# For one prompt, whatever becomes of them: what was given back may have gone to answers that grow.
MAX_WISHES = 4
# Of a large fleet: so many are looked at, others the next time.
_MAX_ASKED = 8


def ask_for_room(state: RouterState, sequence: Sequence, now: float) -> list[Action]:
    """The first prompt in line finds no room: ask for some if it cannot wait."""
    if not state.policy.urgent_preempts or state.policy.is_decoupled:
        return []
    due = sequence.due
    if not is_urgent(due.arrival_at_s, due.hopeless_at_s, now):
        return []
    if sequence.num_room_wishes >= MAX_WISHES or _is_waiting_for_word(state, now):
        return []
    asked = _least_short(state, sequence, now)
    if asked is None:
        return []
    view, num_blocks = asked
    worker_id = view.hello.worker_id
    sequence.num_room_wishes += 1
    state.room_wish = RoomWish(sequence.task_id, worker_id, now, due.hopeless_at_s)
    due_in_s = due.next_token_at_s - now
    return [SendCommand(worker_id, MakeRoom(sequence.task_id, num_blocks, due_in_s))]


def room_made(state: RouterState, view: WorkerView, report: RoomMade, now: float) -> None:
    """The worker's word on a wish."""
    wish = state.room_wish
    is_asked = wish is not None and wish.worker_id == view.hello.worker_id
    if wish is None or not is_asked or wish.task_id != report.task_id:
        return  # nobody waits for it any more
    wish.is_answered = True
    if not report.num_blocks:
        view.makes_no_room_before_s = now + REFUSED_S
        state.room_wish = None


def forget_worker(state: RouterState, worker_id: WorkerId) -> None:
    """Its session is over: nobody there knows of a wish any more."""
    if state.room_wish is not None and state.room_wish.worker_id == worker_id:
        state.room_wish = None


def keeps_room(state: RouterState, view: WorkerView, now: float) -> bool:
    """What is given back there is for an urgent prompt, which will be placed in a moment."""
    wish = _open_wish(state, now)
    if wish is None or wish.worker_id != view.hello.worker_id:
        return False
    # A router knows more of its answers than their worker: perhaps one of them is due sooner.
    prompt = state.sequence_by_task[wish.task_id]
    return may_be_asked(view, now, prompt.due.next_token_at_s)


def _open_wish(state: RouterState, now: float) -> RoomWish | None:
    wish = state.room_wish
    if wish is None:
        return None
    if wish.task_id not in state.prompt_queue or now >= wish.until_s:
        state.room_wish = wish = None
    return wish


def _is_waiting_for_word(state: RouterState, now: float) -> bool:
    """Of the worker that was asked; one that takes too long may still answer while no other is."""
    wish = _open_wish(state, now)
    if wish is None or wish.is_answered:
        return False
    silent_at_s = wish.asked_at_s + ANSWER_S
    view = state.fleet.get(wish.worker_id)
    if view is not None and now >= silent_at_s:
        view.makes_no_room_before_s = silent_at_s + ANSWER_S
    return now < silent_at_s


def _least_short(
    state: RouterState, sequence: Sequence, now: float
) -> tuple[WorkerView, int] | None:
    """The worker that lacks the fewest blocks for it, and how many; None: nobody is to be asked."""
    due_at_s, at_most = sequence.due.next_token_at_s, sequence.num_tokens_at_most
    shortest: tuple[WorkerView, int] | None = None
    for view in state.fleet.some(_MAX_ASKED):
        num_blocks = decode_blocks(state, sequence, view.hello.block_size)
        num_lacking = num_blocks - _num_spare_blocks(view)
        if (
            view.hello.makes_room
            and view.makes_no_room_before_s <= now
            and num_blocks <= view.num_general_blocks
            and num_lacking > 0
            and at_most <= view.num_tokens
            and view.num_backlog_tokens < view.max_backlog_tokens
            and may_be_asked(view, now, due_at_s)
            and (shortest is None or num_lacking < shortest[1])
        ):
            shortest = view, num_lacking
    return shortest


def _num_spare_blocks(view: WorkerView) -> int:
    """Of what newcomers may have; below 0 where answers have grown into the reserve for growth."""
    num_free = view.hello.num_blocks - view.num_promised_blocks
    return min(num_free, view.load.num_free_blocks) - view.hello.num_growth_blocks
