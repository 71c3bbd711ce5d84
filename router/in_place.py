"""What a mixed worker is told of a prompt that it is to compute and to answer in place."""

from router.events import Action, SendCommand
from router.leg import Leg
from router.sequence import Sequence
from router.state import RouterState
from scheduling.lifecycle import Change
from scheduling.messages import AdmitPrompt


def dispatch_in_place(state: RouterState, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
    """The leg's blocks are booked: send the prompt there."""
    assert leg.worker_id is not None
    sequence.move(Change.PREFILL_DISPATCHED, now)
    sequence.prefill_worker = sequence.decode_worker = leg.worker_id
    sequence.early_binding = False
    sequence.request.gpu_work_spent = True
    if leg.place is not None:
        state.counters.num_guests += 1
    prompt = AdmitPrompt(
        task_id=sequence.task_id,
        sequence=sequence.as_spec(now),
        num_blocks=leg.num_blocks,
        due_in_s=sequence.as_waiting().deadline_at_s - now,
        age_s=max(0.0, now - sequence.request.arrival_at_s),
        place=leg.place,
        is_answer_held=leg.is_staged,
    )
    return [SendCommand(leg.worker_id, prompt)]


def place_refused(state: RouterState, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
    """What it was to borrow was gone when its turn came: it waits again."""
    note_refused_place(state, leg)
    sequence.move(Change.PLACE_LOST, now)
    return state.legs.close(leg)


def note_refused_place(state: RouterState, leg: Leg) -> None:
    """Its host stands differently than it was thought."""
    assert leg.place is not None
    assert leg.worker_id is not None
    state.counters.num_guests_refused += 1
    view = state.fleet.get(leg.worker_id)
    host = None if view is None else view.decode_legs.get(leg.place.host_id)
    host_sequence = state.sequence_by_task.get(leg.place.host_id)
    if view is not None and host is not None and host_sequence is not None:
        # The same place again would be refused again: not before the host is a block further.
        host.lends_from_tokens = host_sequence.num_kv_tokens + view.hello.block_size
