"""Takes tasks out of the two queues, finds them workers, and puts them back where that failed.

GTs go first: their KV blocks prefill workers (late binding). A prompt that starts while no GT
waits gets its decode blocks reserved in the same breath, so that its KV streams over while it is
still being computed (early binding).
"""

import math

from router.answers_in_place import admit_in_place, to_make_room
from router.decode_room import DecodeRoom
from router.ended_requests import record_of
from router.events import (
    PREFILL_LEG,
    Action,
    EmitFailed,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    SendCommand,
)
from router.guests import Guests
from router.guests_in_line import lend_to_answers
from router.in_place import dispatch_in_place
from router.leg import Leg, LegState
from router.reservations import Reservations
from router.room_wishes import ask_for_room
from router.sequence import Request, Sequence
from router.state import RouterState
from router.swapped import resume_answered, resume_parked, to_recompute
from scheduling.block_pool import num_blocks_for
from scheduling.errors import TandemError, WorkerFailed
from scheduling.lifecycle import TERMINAL, Change, Phase
from scheduling.messages import AdmitGeneration, PushTo, StartDecode, StartPrefill


class Scheduler:
    """Moves sequences between queues and legs."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._reservations = Reservations(state)
        self._guests = Guests(state)

    def enqueue_prompt(self, sequence: Sequence) -> None:
        """(Re)enter the PT queue under the present try's id."""
        self._state.sequence_by_task[sequence.task_id] = sequence
        state = self._state
        key = state.policy.ordering.prompt_key(sequence.as_waiting())
        late_at_s = math.inf
        if state.policy.late_yields:
            late_at_s = sequence.due.hopeless_at_s
        state.prompt_queue.push(sequence.task_id, key, late_at_s, sequence.num_kv_tokens)
        self._guests.entered(sequence, key)

    def enqueue_generation(self, sequence: Sequence) -> None:
        """(Re)enter the GT queue; the KV stays parked on the prefill worker."""
        key = self._state.policy.ordering.generation_key(sequence.as_waiting())
        queue, length = self._state.generation_queue, sequence.num_response_tokens
        queue.push(sequence.task_id, key, length)

    def schedule(self, now: float) -> list[Action]:
        """Start whatever has room, in order.

        The head of the PT queue is not overtaken, unless no connected worker could ever take it, or
        by guests; the GT queue keeps the rules of `scheduling/generation_queue.py`.
        """
        state = self._state
        actions: list[Action] = list(resume_parked(state, now))
        for sequence in list(to_recompute(state, now)):
            why = "its KV was swapped out, and there is room elsewhere first"
            actions += self.try_again(sequence, Change.PREEMPTED, why, now)
        actions += admit_in_place(state, now)
        actions += lend_to_answers(state, now)
        for sequence in list(to_make_room(state, now)):
            why = "prompts fill the worker that has its KV"
            actions += self.try_again(sequence, Change.PREEMPTED, why, now)
        actions += self._admit_generations(now)
        while (task_id := state.prompt_queue.peek(now)) is not None:
            sequence = state.sequence_by_task[task_id]
            reserve = self._reserve_prompt(sequence, now)
            if reserve is not None:
                actions.append(reserve)
            elif 0 < state.fleet.max_request_tokens() < sequence.num_tokens_at_most:
                state.stranded[task_id] = sequence
            else:
                guests = self._guests.pipelined(task_id, now)
                for guest in guests:
                    actions.append(self._reservations.for_guest(guest))
                    state.prompt_queue.take(guest.sequence.task_id)
                if not guests:
                    actions += ask_for_room(state, sequence, now)
                    break
                continue
            state.prompt_queue.take(task_id)
            self._guests.left(task_id)
        return actions

    def check_invariants(self) -> None:
        """Raise AssertionError unless whoever looks for guests sees the PT queue as it is."""
        self._guests.check_invariants()
        self._reservations.check_invariants()
        self._state.generation_queue.check_invariants()
        self._state.answer_lines.check_invariants()

    def reconsider_stranded(self) -> None:
        """A worker connected: what fitted nowhere may fit now."""
        stranded, self._state.stranded = self._state.stranded, {}
        for sequence in stranded.values():
            self.enqueue_prompt(sequence)

    def reservation_answered(self, event: ReservationAnswered, now: float) -> list[Action]:
        """The ledger granted or refused; a grant that nobody wants any more goes back."""
        state = self._state
        leg = state.legs.get(event.claim.task_id, event.claim.role)
        if leg is None or leg.claim != event.claim:
            return [ReleaseHolding(event.claim)] if event.worker_id else []
        if leg.state is LegState.RESUMING:
            return resume_answered(state, leg, event.worker_id is not None, now)
        if leg.state is not LegState.RESERVING:
            return []  # ended while it was to resume; what was granted goes back with TaskReleased
        view = None if event.worker_id is None else state.fleet.get(event.worker_id)
        if view is not None and view.hello.incarnation != event.incarnation:
            view = None  # the worker that was reserved on has died since
        if view is not None and not leg.is_abandoned:
            state.legs.settle(leg, view.hello.worker_id)
            sequence = state.sequence_by_task[leg.task_id]
            leg.is_booked = event.is_booked
            if leg.is_in_place:
                return dispatch_in_place(state, sequence, leg, now)
            if leg.role == PREFILL_LEG:
                return self._dispatch_prefill(sequence, leg, now)
            return self._admit_generation(sequence, leg, now)
        if leg.worker_id is not None and event.worker_id is None:
            state.fleet.pause(leg.worker_id, now)
        actions = state.legs.close(leg) if event.worker_id is not None else []
        state.legs.remove(leg)
        if not leg.is_abandoned:
            self.requeue(state.sequence_by_task[leg.task_id], leg)
        return actions

    def requeue(self, sequence: Sequence, leg: Leg) -> None:
        """A leg came to nothing: wait again, unless the prompt is still being computed."""
        sequence.set_leg(leg.role, None)
        if sequence.phase is Phase.PROMPT_QUEUED:
            self.enqueue_prompt(sequence)
        elif sequence.phase is Phase.GENERATION_QUEUED:
            self.enqueue_generation(sequence)

    def bind(self, sequence: Sequence, now: float) -> list[Action]:
        """Prompt computed and decode blocks granted: hand over."""
        assert sequence.decode is not None
        assert sequence.decode.worker_id is not None
        sequence.move(Change.DECODE_BOUND, now)
        start = StartDecode(sequence.task_id, tuple(sequence.output_token_ids))
        return [SendCommand(sequence.decode.worker_id, start)]

    def push_to_target(self, sequence: Sequence) -> list[Action]:
        """Tell the prefill worker where the KV goes."""
        prefill, decode = sequence.prefill, sequence.decode
        assert prefill is not None
        assert prefill.worker_id is not None
        assert decode is not None
        assert decode.target is not None
        return [SendCommand(prefill.worker_id, PushTo(sequence.task_id, decode.target))]

    def drop_try(self, sequence: Sequence, reason: str = "the request ended") -> list[Action]:
        """End the present try: out of the queues, both legs told at once."""
        state, task_id = self._state, sequence.task_id
        state.prompt_queue.remove(task_id)
        self._guests.left(task_id)
        state.generation_queue.remove(task_id)
        state.answer_lines.remove(task_id)
        state.sequence_by_task.pop(task_id, None)
        state.stranded.pop(task_id, None)
        actions: list[Action] = []
        for leg in (sequence.prefill, sequence.decode):
            if leg is not None:
                actions += state.legs.abandon(leg, reason)
        sequence.prefill = sequence.decode = None
        return actions

    def try_again(
        self, sequence: Sequence, change: Change, why: TandemError | str, now: float
    ) -> list[Action]:
        """Compute prompt and output so far again, elsewhere or later; fail after too many."""
        state = self._state
        if change is Change.PREEMPTED:
            state.note_preemption(sequence)
        actions = self.drop_try(sequence, "the task is computed again")
        if change is Change.PREEMPTED:
            sequence.preemptions.num_recomputations += 1
            sequence.has_made_room = state.policy.reserves_more_again
        elif change is Change.EVACUATED:
            # Nobody failed: it costs none of the tries.
            sequence.num_evacuations += 1
            state.counters.num_migrations += 1
        elif sequence.num_failures >= state.settings.max_retries_per_task:
            sequence.move(Change.GAVE_UP, now)
            wait_s = state.fleet.retry_after_s(now)
            error = why if isinstance(why, TandemError) else _gave_up(sequence, why, wait_s)
            return [*actions, *self.close(sequence.request, error, now)]
        else:
            sequence.num_migrations += 1
            state.counters.num_migrations += 1
        if sequence.phase is not Phase.PROMPT_QUEUED:
            sequence.move(change, now, why if isinstance(why, str) else why.message)
        sequence.task_id = state.new_task_id(sequence.request_id, sequence.index)
        self.enqueue_prompt(sequence)
        return actions

    def close(
        self, request: Request, error: TandemError | None, now: float | None = None
    ) -> list[Action]:
        """Forget a request that is over; with an error, end its other sequences too."""
        state = self._state
        actions: list[Action] = []
        for sequence in request.sequences:
            if error is not None and now is not None and sequence.phase not in TERMINAL:
                sequence.move(Change.GAVE_UP, now)
                actions += self.drop_try(sequence)
        if not request.is_over:
            return actions
        state.request_by_id.pop(request.spec.request_id, None)
        state.deadlines.remove(request.spec.request_id)
        state.ended.add(record_of(request, error))
        has_failed = any(sequence.phase is Phase.FAILED for sequence in request.sequences)
        # A request and its answers know each other: a large prompt would wait for the collector.
        request.sequences.clear()
        if error is None:
            state.counters.num_finished += 1
            return actions
        if has_failed:
            state.counters.num_failed += 1
        else:
            state.counters.num_cancelled += 1
        actions.append(EmitFailed(request.spec.request_id, error, request.gpu_work_spent))
        return actions

    def _admit_generations(self, now: float) -> list[Action]:
        state = self._state
        actions: list[Action] = []
        while True:
            room = DecodeRoom(state, self._reservations, now)
            state.generation_queue.take_groups(room)
            actions += room.actions
            head = state.generation_queue.peek()
            if head is None:
                return actions
            sequence = state.sequence_by_task[head]
            if not state.fleet.is_out_of_reach(sequence.prefill, sequence.num_tokens_at_most):
                return actions
            why = "no decode worker is left that could take its KV"
            actions += self.try_again(sequence, Change.WORKER_LOST, why, now)

    def _reserve_prompt(self, sequence: Sequence, now: float) -> Reserve | None:
        """On a prefill worker, or, where none can take it, on a mixed one."""
        offer = self._guests.embedded(sequence, now)
        if offer is not None:
            return self._reservations.for_guest(offer)
        found = self._reservations.prefill(sequence, now)
        return found or self._reservations.in_place(sequence, now)

    def _dispatch_prefill(self, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
        assert leg.worker_id is not None
        sequence.move(Change.PREFILL_DISPATCHED, now)
        # decode_worker stays: a preempted answer may end right here, on its last token.
        sequence.prefill_worker = leg.worker_id
        sequence.early_binding = False
        sequence.request.gpu_work_spent = True
        start = StartPrefill(sequence.task_id, sequence.as_spec(now))
        actions: list[Action] = [SendCommand(leg.worker_id, start)]
        is_last = len(sequence.output_token_ids) + 1 >= sequence.request.spec.stop.max_tokens
        # A prompt that was not booked may wait on its worker for blocks that parked KV holds. Bound
        # early, it would keep decode blocks meanwhile, perhaps those that the parked KV waits for.
        may_bind = leg.is_booked and not is_last
        if len(self._state.generation_queue) == 0 and may_bind:
            early = self._reservations.decode(sequence, now)
            if early is not None:
                actions.append(early)
        return actions

    def _source_of(self, sequence: Sequence) -> str:
        """Whose transfers the task may rely on; nobody's once one was lost, so that it ends."""
        if sequence.num_prefix_losses or sequence.prefill is None:
            return ""
        return sequence.prefill.worker_id or ""

    def _admit_generation(self, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
        assert leg.worker_id is not None
        view = self._state.fleet.get(leg.worker_id)
        assert view is not None
        spec = sequence.as_spec(now)
        num_kv_tokens = sequence.num_kv_tokens
        if sequence.phase is Phase.GENERATION_QUEUED:
            # The newest token has no KV yet; the decode worker computes it.
            num_kv_tokens -= 1
        sequence.decode_worker = leg.worker_id
        leg.num_kv_blocks = num_blocks_for(num_kv_tokens, view.hello.block_size)
        return [
            SendCommand(
                leg.worker_id,
                AdmitGeneration(
                    task_id=sequence.task_id,
                    sequence=spec,
                    num_blocks=leg.num_blocks,
                    num_kv_blocks=leg.num_kv_blocks,
                    transfer_id=f"{sequence.task_id}@{leg.worker_id}",
                    source_worker_id=self._source_of(sequence),
                    age_s=max(0.0, now - sequence.request.arrival_at_s),
                ),
            )
        ]


def _gave_up(sequence: Sequence, why: str, retry_after_s: float) -> WorkerFailed:
    return WorkerFailed(
        f"gave up after {sequence.num_migrations + 1} tries, the last one because {why}; retry "
        "later, and look at `tandem admin workers`",
        retry_after_s=retry_after_s,
    )
