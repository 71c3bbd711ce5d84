"""Answers that wait in place begin in blocks of running ones (EcoServe, KVC pipelining).

Their prompts' KV lies on the worker already, so they need nothing but what their host writes later:
no ledger is asked, and nobody is delayed. The router proposes, and the worker looks again: it says
DecodeStarted, or BlocksRefused, and then the answer waits in line again.
"""

from router.answers_in_place import begin, wait_for_room
from router.events import Action, SendCommand
from router.guests import MAX_AT_ONCE, NUM_LEAD_ITERATIONS, hosts_on
from router.in_place import note_refused_place
from router.leg import Leg
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView
from scheduling.block_leases import LeaseKind, LentPlace
from scheduling.ids import TaskId
from scheduling.kvc_pipeline import Guest, GuestTask, PipelineRule, choose_guests
from scheduling.length_groups import LengthGroups
from scheduling.lifecycle import Change
from scheduling.messages import StartDecode
from scheduling.policy import Sharing


def lend_to_answers(state: RouterState, now: float) -> list[Action]:
    """Let those begin as guests that fit; a line is looked at when it or its worker has changed."""
    if state.policy.sharing is not Sharing.PIPELINE:
        return []
    actions: list[Action] = []
    for worker_id, line in state.answer_lines.lines():
        view = state.fleet.get(worker_id)
        if view is None or view.is_starving or not view.has_places_for_line:
            continue
        view.has_places_for_line = False
        assert isinstance(line, LengthGroups)
        actions += _lend_on(state, view, line, now)
    return actions


def guest_began(state: RouterState, sequence: Sequence, leg: Leg, now: float) -> None:
    """Its worker lent it the place."""
    sequence.num_blocks_borrowed = leg.num_borrowed_blocks
    state.legs.answer_granted(leg)
    sequence.move(Change.KEPT_IN_PLACE, now)


def guest_refused(state: RouterState, sequence: Sequence, leg: Leg) -> None:
    """The place was gone."""
    note_refused_place(state, leg)
    state.legs.return_place(leg)
    wait_for_room(state, sequence)


def _lend_on(state: RouterState, view: WorkerView, line: LengthGroups, now: float) -> list[Action]:
    hosts = list(hosts_on(state, view, NUM_LEAD_ITERATIONS))
    if not hosts:
        return []

    def needs(task_id: TaskId) -> GuestTask:
        sequence = state.sequence_by_task[task_id]
        assert sequence.decode is not None
        # Who borrows already is the guest of nobody else: no block is free for it here.
        num_new_blocks = 0 if sequence.decode.place is None else 1
        # The newest token has no KV yet.
        return GuestTask(sequence.num_kv_tokens - 1, num_new_blocks)

    rule = PipelineRule(view.hello.block_size)
    chosen = choose_guests(hosts, line, rule, needs, num_free_blocks=0, max_guests=MAX_AT_ONCE)
    view.has_places_for_line = len(chosen) == MAX_AT_ONCE
    return [action for guest in chosen for action in _start(state, view, guest, now)]


def _start(state: RouterState, view: WorkerView, guest: Guest, now: float) -> list[Action]:
    state.answer_lines.remove(guest.task_id)
    sequence = state.sequence_by_task[guest.task_id]
    assert sequence.decode is not None
    if not guest.num_blocks:
        return begin(state, sequence, sequence.decode, now)
    place = LentPlace(
        guest.host_id,
        guest.start_block,
        guest.num_blocks,
        sequence.num_response_tokens,
        LeaseKind.PIPELINE,
    )
    state.legs.borrow(sequence.decode, place)
    state.counters.num_guests += 1
    start = StartDecode(guest.task_id, tuple(sequence.output_token_ids), place)
    return [SendCommand(view.hello.worker_id, start)]
