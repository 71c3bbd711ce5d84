"""What the router does next. Pure: events in, actions out, `now` an argument.

It owns every request from arrival to end: both queues, the choice of workers, and the rule that a
block is free only when its worker has said so. It performs nothing; serve.py does.
"""

from typing import assert_never

from router.answer_lines import AnswerLines
from router.events import (
    Action,
    CallerLeft,
    DrainTimedOut,
    Event,
    ExtensionAnswered,
    OperatorCancelled,
    ReaderFellBehind,
    ReportsArrived,
    RequestArrived,
    RequestSpec,
    ReservationAnswered,
    TimeReached,
    WakeAt,
    WorkerConnected,
    WorkerLost,
)
from router.fleet import Fleet
from router.growth import Growth
from router.legs import LegBook
from router.reports import ReportHandler
from router.room_wishes import forget_worker
from router.scheduler import Scheduler
from router.sequence import Request, Sequence
from router.state import RouterSettings, RouterState
from router.swapped import next_overdue_at
from scheduling.backlog import BacklogLimit
from scheduling.errors import (
    CanNeverFit,
    DeadlineExceeded,
    DuplicateRequest,
    NoWorkerAvailable,
    QueueFull,
    ReaderTooSlow,
    RequestCancelled,
    StaleIncarnation,
    TandemError,
)
from scheduling.ids import RequestId
from scheduling.lifecycle import TERMINAL, Change, Phase
from scheduling.policy import Policy
from scheduling.prediction import LengthPredictor
from scheduling.triage import TriagedQueue

# While anything waits: answers that go on, and time that passes, may make room for it.
_LOOK_S = 0.02


class RouterCore:
    """Owned by one task; holds no lock."""

    def __init__(
        self, policy: Policy, predictor: LengthPredictor, settings: RouterSettings
    ) -> None:
        fleet = Fleet(BacklogLimit(settings.max_backlog_tokens, policy.is_queued_on_workers))
        self.state = RouterState(
            fleet=fleet,
            legs=LegBook(fleet),
            policy=policy,
            predictor=predictor,
            settings=settings,
            prompt_queue=TriagedQueue(settings.max_prompt_queue),
            # Every task in it was admitted through the PT queue or holds worker blocks, which
            # bound it; refusing one here would lose work.
            generation_queue=policy.new_generation_queue(
                settings.max_prompt_queue, settings.length_quantum_tokens
            ),
            answer_lines=AnswerLines(
                lambda: policy.new_generation_queue(
                    settings.max_prompt_queue, settings.length_quantum_tokens
                )
            ),
        )
        self._scheduler = Scheduler(self.state)
        self._growth = Growth(self.state, self._scheduler)
        self._reports = ReportHandler(self.state, self._scheduler, self._growth)
        self._woken_for_s: float | None = None
        # When the queues are to be looked at again, though nothing happens.
        self._look_at_s = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event. Raises: TandemError when an arriving request is refused."""
        actions = self._take(event, now)
        if isinstance(event, ReportsArrived) and not self._reports.has_news:
            return actions  # nothing that any decision depends on
        if self.state.is_anything_waiting:
            actions += self._scheduler.schedule(now)
            wake_at_s = self._next_wake(now)
        else:
            wake_at_s = self.state.deadlines.next_at()
        if wake_at_s is not None and wake_at_s != self._woken_for_s:
            self._woken_for_s = wake_at_s
            actions.append(WakeAt(wake_at_s))
        return actions

    def check_invariants(self) -> None:
        """Raise AssertionError unless promises, places and queues agree."""
        self.state.legs.check_invariants()
        self._scheduler.check_invariants()

    def _take(self, event: Event, now: float) -> list[Action]:
        match event:  # what comes most often first
            case ReportsArrived():
                return self._reports.handle(event, now)
            case ReservationAnswered():
                return self._scheduler.reservation_answered(event, now)
            case ExtensionAnswered():
                return self._growth.answered(event, now)
            case RequestArrived(spec):
                return self._admit(spec, now)
            case CallerLeft(request_id):
                left = RequestCancelled("the caller left or cancelled; nothing to do")
                return self._end_request(request_id, left, Change.CALLER_LEFT, now)
            case OperatorCancelled(request_id, message):
                ended = RequestCancelled(message)
                return self._end_request(request_id, ended, Change.OPERATOR_CANCELLED, now)
            case ReaderFellBehind(request_id, max_bytes, is_shared):
                behind = ReaderTooSlow(max_bytes, is_shared=is_shared)
                return self._end_request(request_id, behind, Change.CALLER_LEFT, now)
            case DrainTimedOut():
                return self._end_all(now)
            case WorkerConnected(hello):
                known = self.state.fleet.get(hello.worker_id)
                if known is not None and known.hello.incarnation > hello.incarnation:
                    raise StaleIncarnation(f"{hello.worker_id} has a newer life; restart it")
                actions = self._lose_worker(WorkerLost(hello.worker_id, hello.incarnation), now)
                self.state.fleet.add(hello)
                self.state.legs.connected(hello.worker_id)
                self._scheduler.reconsider_stranded()
                return [*actions, *self.state.fleet.introductions(hello)]
            case WorkerLost():
                return self._lose_worker(event, now)
            case TimeReached():
                self._woken_for_s = None
                return self._expire(now)
            case _:
                assert_never(event)

    def _admit(self, spec: RequestSpec, now: float) -> list[Action]:
        state = self.state
        if spec.request_id in state.request_by_id:
            raise DuplicateRequest(f"request id {spec.request_id!r} is running; choose another id")
        num_tokens = len(spec.prompt_token_ids) + spec.stop.max_tokens
        if num_tokens > state.settings.max_sequence_tokens:
            raise CanNeverFit(
                f"prompt and max_tokens are {num_tokens} tokens; a message to a worker holds "
                f"{state.settings.max_sequence_tokens} of them; shorten the request, or raise "
                "max_message_bytes of the router and of all workers"
            )
        state.fleet.check_can_fit(len(spec.prompt_token_ids) + spec.stop.max_tokens, now)
        room = state.settings.max_prompt_queue - len(state.prompt_queue)
        if spec.num_choices > room:
            raise QueueFull(
                f"the prompt queue holds {len(state.prompt_queue)} tasks, its limit is "
                f"{state.settings.max_prompt_queue}; retry later or add prefill workers",
                retry_after_s=1.0,
            )
        deadline_at_s = None if spec.deadline_s is None else now + spec.deadline_s
        request = Request(spec, now, deadline_at_s, state.prefill_pace, state.answer_pace)
        state.request_by_id[spec.request_id] = request
        if deadline_at_s is not None:
            state.deadlines.add(spec.request_id, deadline_at_s)
        predicted = state.predictor.predict(spec.features(now))
        for index in range(spec.num_choices):
            task_id = state.new_task_id(spec.request_id, index)
            sequence = Sequence(request, index, predicted, task_id, phase_since_s=now)
            sequence.num_unheard = state.num_unheard
            request.sequences.append(sequence)
            if spec.resumed and not sequence.resume(spec.resumed[index]):
                continue
            sequence.move(Change.ADMITTED, now)
            self._scheduler.enqueue_prompt(sequence)
        return []

    def _end_request(
        self, request_id: RequestId, error: TandemError, change: Change, now: float
    ) -> list[Action]:
        request = self.state.request_by_id.get(request_id)
        if request is None:
            return []
        actions: list[Action] = []
        for sequence in request.sequences:
            if sequence.phase not in TERMINAL:
                sequence.move(change, now)
                actions += self._scheduler.drop_try(sequence)
        return [*actions, *self._scheduler.close(request, error)]

    def _end_all(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for request in list(self.state.request_by_id.values()):
            ending = NoWorkerAvailable(
                "this router is shutting down, and the answer was not complete in time; send the "
                "request again, to another replica or when this one is back",
                retry_after_s=1.0,
            )
            actions += self._scheduler.close(request, ending, now)
        return actions

    def _expire(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for request_id in self.state.deadlines.take_due(now):
            late = DeadlineExceeded(
                "the request's deadline passed; both legs were stopped; allow more time or ask "
                "for fewer tokens"
            )
            actions += self._end_request(request_id, late, Change.CALLER_LEFT, now)
        return actions

    def _lose_worker(self, event: WorkerLost, now: float) -> list[Action]:
        state = self.state
        view = state.fleet.get(event.worker_id)
        if view is None or view.hello.incarnation > event.incarnation:
            return []
        state.fleet.remove(event.worker_id, now)
        forget_worker(state, event.worker_id)
        actions: list[Action] = []
        for leg in state.legs.on_worker(event.worker_id):
            actions += state.legs.close(leg)
            sequence = state.sequence_by_task.get(leg.task_id)
            if sequence is None or sequence.leg(leg.role) is not leg:
                continue
            sequence.set_leg(leg.role, None)
            is_early = leg.role == "decode" and sequence.phase is Phase.PREFILLING
            if is_early and leg.target is None and not leg.is_in_place:
                # Only an early binding is lost; the prompt goes on. Once the prefill worker knows
                # the target it pushes there, and may free the KV thinking that it arrived.
                continue
            if leg.role == "prefill" and sequence.phase is Phase.DECODING:
                continue  # all of its KV has arrived: the answer does not need it any more
            actions += self._scheduler.try_again(
                sequence, Change.WORKER_LOST, f"worker {event.worker_id} was lost", now
            )
        return actions

    def _next_wake(self, now: float) -> float | None:
        deadline_at_s = self.state.deadlines.next_at()
        instants = [] if deadline_at_s is None else [deadline_at_s]
        overdue_at_s = next_overdue_at(self.state, now)
        if overdue_at_s is not None:
            instants.append(overdue_at_s)
        resume_at_s = self.state.fleet.next_resume_at(now)
        is_queued = len(self.state.prompt_queue) > 0 or self.state.num_waiting_answers > 0
        if resume_at_s is not None and (is_queued or self.state.fleet.num_with_parked):
            instants.append(resume_at_s)
        if is_queued:
            if self._look_at_s <= now:
                self._look_at_s = now + _LOOK_S
            instants.append(self._look_at_s)
        return min(instants, default=None)
