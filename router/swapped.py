"""Sequences whose KV waits in a decode worker's host memory: when they go on, and when not there.

Only that worker has the KV, so each worker has a line of its own; nobody else stands behind it. The
worker takes nothing new meanwhile, so its running tasks end and make room. Each reservation here
covers more than the one before (`Sequence.num_tokens_again`), so nobody is swapped for ever.
"""

from collections.abc import Iterator

from router.admission import decode_blocks
from router.events import DECODE_LEG, GENERAL, GROWTH, Action, Reserve, SendCommand, Share
from router.leg import Leg, LegState
from router.room_wishes import keeps_room
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView, free_estimate
from scheduling.block_pool import num_blocks_for
from scheduling.lifecycle import Change
from scheduling.messages import ResumeGeneration
from scheduling.parked_due import parked_due_at_s
from scheduling.placement import decode_preferences


def park(state: RouterState, sequence: Sequence, now: float) -> list[Action]:
    """The worker took the sequence off its device, or has no room for it after all."""
    leg = sequence.decode
    assert leg is not None
    if leg.parked_at_s is None:
        note_swap(state, sequence)
        sequence.has_made_room = True
        leg.parked_at_s = now
        leg.parked_due_at_s = parked_due_at_s(now, sequence.due.next_token_at_s)
        sequence.move(Change.SWAPPED_OUT, now)
    key = state.policy.ordering.generation_key(sequence.as_waiting())
    return state.legs.park(leg, key)


def note_swap(state: RouterState, sequence: Sequence) -> None:
    """Its KV moved to host memory; where the worker sees to the rest, that is all."""
    # It was on the device until now, whether or not its worker has said so.
    sequence.preemptions.note_return()
    sequence.preemptions.num_swaps += 1
    state.note_preemption(sequence)


def resume_parked(state: RouterState, now: float) -> list[Action]:
    """Ask for room for the first in line of each worker that seems to have it."""
    return [
        reserve
        for view in state.fleet.with_parked()
        if (reserve := _resume_first(state, view, now)) is not None
    ]


def resume_answered(state: RouterState, leg: Leg, is_granted: bool, now: float) -> list[Action]:
    """The ledger's word on a parked leg that is still wanted."""
    assert leg.worker_id is not None
    if not is_granted:
        state.fleet.pause(leg.worker_id, now)
        state.legs.resume_refused(leg)
        return []
    state.legs.resume_granted(leg)
    return [SendCommand(leg.worker_id, ResumeGeneration(leg.task_id, leg.num_blocks))]


def came_back(sequence: Sequence, now: float) -> None:
    """The KV is on the device again."""
    assert sequence.decode is not None
    sequence.decode.parked_at_s = None
    sequence.preemptions.note_return()
    sequence.move(Change.SWAPPED_IN, now)


def to_recompute(state: RouterState, now: float) -> Iterator[Sequence]:
    """Sequences to give up where they are.

    One can never go on there, because the worker is too small for the longest answer. Or it has
    waited for long, and another decode worker has room that nobody else waits for. Either way its
    next reservation covers more than this one would have.
    """
    for view in state.fleet.with_parked():
        task_id = view.parked.peek()
        if task_id is None:
            continue
        sequence = state.sequence_by_task[task_id]
        leg = sequence.decode
        assert leg is not None
        if leg.state is not LegState.PARKED:
            continue
        size = view.hello.block_size
        if num_blocks_for(sequence.num_tokens_at_most, size) > view.hello.num_blocks or (
            _is_overdue(state, leg, now) and _is_room_elsewhere(state, sequence, view, now)
        ):
            yield sequence


def next_overdue_at(state: RouterState, now: float) -> float | None:
    """When the first of those that wait will have waited for long."""
    instants = []
    for view in state.fleet.with_parked():
        task_id = view.parked.peek()
        leg = None if task_id is None else state.legs.get(task_id, DECODE_LEG)
        if leg is not None and leg.parked_at_s is not None and not _is_overdue(state, leg, now):
            instants.append(_overdue_at(state, leg))
    return min(instants, default=None)


def _resume_first(state: RouterState, view: WorkerView, now: float) -> Reserve | None:
    task_id = view.parked.peek()
    if task_id is None or view.is_starving or view.paused_until_s > now:
        return None
    if keeps_room(state, view, now):
        return None
    sequence = state.sequence_by_task[task_id]
    leg = sequence.decode
    assert leg is not None
    if leg.state is not LegState.PARKED:
        return None  # the ledger has been asked
    num_blocks = decode_blocks(state, sequence, view.hello.block_size)
    share: Share = GENERAL if num_blocks <= view.num_general_blocks else GROWTH
    if free_estimate(view, share) < num_blocks:
        return None
    state.legs.ask_to_resume(leg, num_blocks)
    life = (view.hello.worker_id, view.hello.incarnation)
    return Reserve(leg.claim, (life,), num_blocks, share)


def _is_room_elsewhere(
    state: RouterState, sequence: Sequence, view: WorkerView, now: float
) -> bool:
    if len(state.prompt_queue) or len(state.generation_queue):
        return False  # they are to have it
    num_blocks = decode_blocks(state, sequence, view.hello.block_size)
    candidates = state.fleet.decode_candidates(now, GENERAL, sequence.request.prefix)
    return bool(decode_preferences(candidates, num_blocks, view.hello.compatibility))


def _is_overdue(state: RouterState, leg: Leg, now: float) -> bool:
    return now >= _overdue_at(state, leg)


def _overdue_at(state: RouterState, leg: Leg) -> float:
    assert leg.parked_at_s is not None
    return leg.parked_at_s + state.settings.max_parked_s
