"""Takes in what workers report, and hands each report to whoever minds what it is about."""

from typing import assert_never

from router.evacuation import evacuate
from router.events import DECODE_LEG, PREFILL_LEG, Action, ReportsArrived
from router.growth import Growth
from router.handover import Handover
from router.leg import Leg, LegState
from router.progress import Progress
from router.report_check import is_in_turn
from router.room_wishes import room_made
from router.scheduler import Scheduler
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView
from scheduling.block_leases import BlocksInherited
from scheduling.errors import KvCorrupted
from scheduling.lifecycle import Change, Phase
from scheduling.messages import (
    PREFIX_LOST,
    Admission,
    BlocksGranted,
    BlocksRefused,
    DecodeStarted,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    PromptScored,
    Report,
    RoomMade,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)


class ReportHandler:
    """Applies reports to the sequences of the present tries; others only free their legs."""

    def __init__(self, state: RouterState, scheduler: Scheduler, growth: Growth) -> None:
        self._state = state
        self._scheduler = scheduler
        self._progress = Progress(state, scheduler)
        self._handover = Handover(state, scheduler)
        self._growth = growth
        # The latest frame held more than the next tokens of answers that go on.
        self.has_news = True

    def handle(self, frame: ReportsArrived, now: float) -> list[Action]:
        """One frame of one worker."""
        self.has_news = False
        view = self._state.fleet.get(frame.worker_id)
        if view is None:
            return []
        has_news = view.load.admission is Admission.EVACUATING
        if frame.prefixes is not None:
            has_news = True
            view.prefixes.apply(frame.prefixes)
        before = view.load
        if frame.load is not None and self._state.fleet.take_load(view, frame.load, now):
            self._scheduler.reconsider_stranded()
        has_news = has_news or view.load is not before
        actions: list[Action] = []
        for report in frame.reports:
            plain = self._progress.plain_token(view, report, now)
            if plain is not None:
                actions.append(plain)
            else:
                has_news = True
                actions += self._apply(view, report, now)
        self.has_news = has_news
        if view.load.admission is Admission.EVACUATING:
            actions += evacuate(self._state, self._scheduler, view, now)
        return actions

    def _apply(self, view: WorkerView, report: Report, now: float) -> list[Action]:
        if isinstance(report, TaskReleased):
            return self._released(view, report, now)
        if isinstance(report, RoomMade):
            room_made(self._state, view, report, now)
            return []
        worker_id = view.hello.worker_id
        sequence = self._state.sequence_by_task.get(report.task_id)
        leg = None if sequence is None else sequence.leg(view.role)
        if sequence is None or leg is None or leg.worker_id != worker_id:
            return []  # an earlier try's worker; its TaskReleased is all that matters
        if not is_in_turn(report, sequence, leg):
            why = f"worker {worker_id} sent {type(report).__name__} out of turn"
            return self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        match report:
            case TokensEmitted():
                return self._progress.tokens(sequence, leg, report, now)
            case PrefillStarted():
                self._progress.begun(sequence, leg, report, now)
            case PromptScored():
                return self._progress.scored(sequence, report, now)
            case BlocksGranted():
                return self._handover.granted(sequence, leg, report, now)
            case BlocksRefused():
                return self._handover.refused(sequence, leg, now)
            case KvPushed():
                return self._handover.pushed(sequence, report)
            case DecodeStarted():
                self._handover.started(sequence, leg, report, now)
            case GrowthNeeded(_, num_blocks):
                return [self._growth.needed(sequence, leg, num_blocks)]
            case BlocksInherited(_, num_blocks):
                return [self._growth.inherited(sequence, leg, num_blocks)]
            case Preempted(keeps_kv=True):
                return self._growth.outgrown(view, sequence, leg, now)
            case Preempted():
                return self._growth.preempted(sequence, leg, now)
            case SwappedOut():
                return self._growth.swapped_out(view, sequence, now)
            case TaskFailed():
                return self._failed(sequence, leg, report, now)
            case _:
                assert_never(report)
        return []

    def _failed(self, sequence: Sequence, leg: Leg, report: TaskFailed, now: float) -> list[Action]:
        self._state.legs.ending(leg)
        if report.code == "transfer_failed" and leg.worker_id is not None:
            # It looks idle because it fails quickly: others first.
            self._state.fleet.pause(leg.worker_id, now)
        if leg.role == PREFILL_LEG and sequence.phase is Phase.DECODING:
            sequence.set_leg(leg.role, None)  # all of its KV has arrived: it is not needed any more
            return []
        if report.code == PREFIX_LOST:
            sequence.num_prefix_losses += 1
        if report.code == KvCorrupted.code:
            sequence.num_corruptions += 1
            if sequence.num_corruptions > 1:
                actions = self._scheduler.drop_try(sequence)
                sequence.move(Change.GAVE_UP, now)
                error = KvCorrupted(
                    f"{report.message}; it was computed again and damaged again, so no token was "
                    "made from it; look at the workers' logs and memory"
                )
                return actions + self._scheduler.close(sequence.request, error, now)
        return self._scheduler.try_again(sequence, Change.WORKER_LOST, report.message, now)

    def _released(self, view: WorkerView, report: TaskReleased, now: float) -> list[Action]:
        leg = self._state.legs.get(report.task_id, view.role)
        if leg is None or leg.worker_id != view.hello.worker_id:
            return []
        if leg.state is LegState.RESERVING:
            return []  # a new reservation under the same id; not what was released
        # Something is free again, so the worker may be asked again.
        view.is_starving, view.paused_until_s = False, 0.0
        self._state.fleet.touch(view)
        actions = self._state.legs.close(leg)
        sequence = self._state.sequence_by_task.get(report.task_id)
        if sequence is None or sequence.leg(leg.role) is not leg:
            return actions
        sequence.set_leg(leg.role, None)
        is_needed = sequence.phase in (Phase.PREFILLING, Phase.GENERATION_QUEUED)
        if leg.role == DECODE_LEG or (is_needed and not sequence.is_swapped):
            # Our own bookkeeping would have ended the try first: the worker dropped it.
            why = f"worker {view.hello.worker_id} gave the task up"
            actions += self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        return actions
