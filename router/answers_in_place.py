"""Answers that wait on a mixed worker beside their prompt's KV, where the policy decouples the two.

A prompt gets room for itself. When it is computed, its answer waits in a line of that worker, with
its KV there, and gets the rest in a group of its length (EcoServe, SyncDecoupled). The rules:

- A prompt is sent where its answer would have room as well, after those of all that wait there;
  beyond that, prompts and waiting answers together hold no more than the worker's reserve.
- An answer gets room that leaves what prompts do not use of the reserve. Beside answers that wait
  on prefill workers there is one order: in place nobody goes who comes after the first of those.
- An answer that outgrows its prediction while no block is left comes back to the line, with its KV
  and a new prediction, where the policy says so (`Policy.outgrown_waits_again`).
- Nothing runs on the worker: the reserve counts no more, and if nobody fits even so, the last in
  line makes room. It is computed again, and gets room for both together from then on.
"""

from collections.abc import Iterator

from router.events import GENERAL, GROWTH, Action, Extend, SendCommand, Share
from router.leg import Leg, LegState
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView, free_estimate
from scheduling.block_pool import num_blocks_for
from scheduling.generation_queue import GenerationQueue
from scheduling.ids import TaskId
from scheduling.lifecycle import Change, Phase
from scheduling.messages import GrantGrowth, StartDecode
from scheduling.task_queue import Key

# They will end, or will be something else, without anybody's help.
_AT_WORK = frozenset({Phase.TRANSFERRING, Phase.DECODING})


def share_for_prompt(state: RouterState, view: WorkerView, sequence: Sequence) -> Share | None:
    """Where the prompt's blocks come from on that worker; None where it has to wait."""
    num_prompt, num_answer = blocks_in_place(sequence, view.hello.block_size)
    num_general = free_estimate(view, GENERAL) - view.num_due_blocks
    if state.generation_queue.is_empty and num_general >= num_prompt + num_answer:
        return GENERAL
    num_staged = view.num_staged_blocks
    is_in_reserve = not num_staged or num_staged + num_prompt <= view.hello.num_growth_blocks
    return GROWTH if is_in_reserve and free_estimate(view, GROWTH) >= num_prompt else None


def blocks_in_place(sequence: Sequence, block_size: int) -> tuple[int, int]:
    """Of the tokens that exist, and what the rest of the answer needs beside these."""
    num_tokens = sequence.num_kv_tokens
    num_blocks = num_blocks_for(num_tokens, block_size)
    at_its_end = num_blocks_for(num_tokens + sequence.num_response_tokens, block_size)
    return num_blocks, at_its_end - num_blocks


def wait_for_room(state: RouterState, sequence: Sequence) -> None:
    """Its prompt is computed, or the ledger had no room after all."""
    assert sequence.decode is not None
    assert sequence.decode.worker_id is not None
    key, length = _key(state, sequence), sequence.num_response_tokens
    state.answer_lines.push(sequence.decode.worker_id, sequence.task_id, key, length)
    view = state.fleet.get(sequence.decode.worker_id)
    if view is not None:
        view.has_places_for_line = True


def wait_again(
    state: RouterState, view: WorkerView, sequence: Sequence, leg: Leg, now: float
) -> list[Action]:
    """It outgrew its prediction and no block was left: its KV stays where it is (EcoServe,
    offload-free preemption)."""
    features = sequence.request.spec.features(num_output_tokens=sequence.num_output_tokens)
    sequence.predicted = state.predictor.predict(features)
    state.note_preemption(sequence)
    sequence.move(Change.OUTGROWN, now)
    state.legs.stage_again(leg, _num_missing_blocks(sequence, leg, view.hello.block_size))
    # What is freed next is for the first in line, who may be this one.
    view.is_starving = False
    wait_for_room(state, sequence)
    return []


def admit_in_place(state: RouterState, now: float) -> list[Action]:
    """Give room to those that it is there for, worker by worker."""
    actions: list[Action] = []
    for worker_id, line in state.answer_lines.lines():
        view = state.fleet.get(worker_id)
        if view is None or view.paused_until_s > now or not _may_go(state, view, line):
            continue
        room = _RoomInPlace(state, view, now)
        state.answer_lines.take_groups(worker_id, room)
        actions += room.actions
    return actions


def room_answered(state: RouterState, leg: Leg, is_granted: bool, now: float) -> list[Action]:
    """The ledger's word on the room of an answer that is still wanted."""
    assert leg.worker_id is not None
    sequence = state.sequence_by_task[leg.task_id]
    if is_granted:
        return begin(state, sequence, leg, now)
    state.legs.answer_refused(leg)
    state.fleet.pause(leg.worker_id, now)
    wait_for_room(state, sequence)
    return []


def to_make_room(state: RouterState, now: float) -> Iterator[Sequence]:
    """Of each worker where nobody can go on, the last in line."""
    for worker_id, line in state.answer_lines.lines():
        view = state.fleet.get(worker_id)
        if view is not None and view.paused_until_s <= now and _is_idle(state, view):
            *_, last = line.in_order()
            yield state.sequence_by_task[last]


class _RoomInPlace:
    """Implements `scheduling.generation_queue.Room`, for one look at one worker's line."""

    def __init__(self, state: RouterState, view: WorkerView, now: float) -> None:
        self._state = state
        self._view = view
        self._now = now
        self.actions: list[Action] = []

    @property
    def max_response_tokens(self) -> int:
        """See `Room.max_response_tokens`."""
        # The last block of the prompt may have room for some tokens.
        return (free_estimate(self._view, GROWTH) + 1) * self._view.hello.block_size

    def admit(self, task_id: TaskId) -> bool:
        """See `Room.admit`."""
        state, view = self._state, self._view
        sequence = state.sequence_by_task[task_id]
        leg = sequence.decode
        assert leg is not None
        num_blocks = _num_missing_blocks(sequence, leg, view.hello.block_size)
        if not num_blocks:
            self.actions += begin(state, sequence, leg, self._now)
            return True
        num_free = free_estimate(view, GROWTH)
        # Its prompt's blocks are not the reserve's any more.
        num_staged = view.num_staged_blocks - leg.num_staged_blocks
        num_kept = max(0, view.hello.num_growth_blocks - num_staged)
        if num_blocks > num_free:
            return False
        if num_blocks > num_free - num_kept and not _is_idle(state, view):
            return False
        state.legs.ask_for_answer(leg, num_blocks)
        sequence.num_extensions += 1
        self.actions.append(Extend(leg.claim, num_blocks, sequence.num_extensions))
        return True


def begin(state: RouterState, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
    """The answer has all that it needs by prediction."""
    assert leg.worker_id is not None
    num_blocks = leg.num_asked_blocks
    state.legs.answer_granted(leg)
    sequence.move(Change.KEPT_IN_PLACE, now)
    start = StartDecode(leg.task_id, tuple(sequence.output_token_ids))
    actions: list[Action] = []
    if num_blocks:
        actions.append(SendCommand(leg.worker_id, GrantGrowth(leg.task_id, num_blocks)))
    return [*actions, SendCommand(leg.worker_id, start)]


def _num_missing_blocks(sequence: Sequence, leg: Leg, block_size: int) -> int:
    """For all that is predicted of it, beside what it has."""
    num_tokens = sequence.num_kv_tokens + sequence.num_response_tokens
    num_held = leg.num_blocks + leg.num_borrowed_blocks
    return max(0, num_blocks_for(num_tokens, block_size) - num_held)


def _may_go(state: RouterState, view: WorkerView, line: GenerationQueue) -> bool:
    """Neither running answers nor one that waits elsewhere come first."""
    first, elsewhere = line.peek(), state.generation_queue.peek()
    assert first is not None
    is_first = elsewhere is None or (
        _key(state, state.sequence_by_task[first]) <= _key(state, state.sequence_by_task[elsewhere])
    )
    return (is_first and not view.is_starving) or _is_idle(state, view)


def _key(state: RouterState, sequence: Sequence) -> Key:
    return state.policy.ordering.generation_key(sequence.as_waiting())


def _is_idle(state: RouterState, view: WorkerView) -> bool:
    """Nothing there, of this router or of others, will end or begin an answer by itself."""
    if view.load.num_running:
        return False
    return not any(_goes_on(state, leg) for leg in view.decode_legs.values())


def _goes_on(state: RouterState, leg: Leg) -> bool:
    sequence = state.sequence_by_task.get(leg.task_id)
    if sequence is None or sequence.decode is not leg or leg.num_asked_blocks:
        return True  # its blocks are on their way back, or the ledger is asked
    if leg.is_place_asked:
        return True  # the worker is asked
    if leg.state in (LegState.RESERVING, LegState.RESUMING):
        return True
    if sequence.phase is Phase.PREFILLING:
        # One that was not booked may wait on the worker for blocks that others hold.
        return leg.is_booked or not leg.is_in_place
    is_bound = sequence.phase is Phase.GENERATION_QUEUED and not leg.is_in_place
    return sequence.phase in _AT_WORK or (is_bound and not sequence.is_swapped)
