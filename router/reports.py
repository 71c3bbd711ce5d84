"""Takes in what workers report: tokens, granted blocks, delivered KV, released tasks."""

from collections.abc import Sequence as Seq
from typing import assert_never

from router.events import (
    DECODE_LEG,
    PREFILL_LEG,
    Action,
    EmitFinished,
    EmitTokens,
    Extend,
    ExtensionAnswered,
    Role,
    SendCommand,
    TransferHolding,
)
from router.fleet import WorkerView
from router.scheduler import Scheduler
from router.sequence import Leg, LegState, Sequence
from router.state import RouterState
from scheduling.errors import KvCorrupted
from scheduling.ids import WorkerId
from scheduling.lifecycle import Change, Phase
from scheduling.messages import (
    BlocksGranted,
    BlocksRefused,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    Report,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
    WorkerLoad,
)

# What a worker of which role may say of a task in which phase. A worker is another process:
# anything else is its defect, and costs the task a try instead of this process its life.
_BINDING = frozenset({Phase.PREFILLING, Phase.GENERATION_QUEUED})
_TURNS: dict[tuple[type[Report], Role], frozenset[Phase]] = {
    (PrefillStarted, PREFILL_LEG): frozenset({Phase.PREFILLING}),
    (TokensEmitted, PREFILL_LEG): frozenset({Phase.PREFILLING}),
    (KvPushed, PREFILL_LEG): frozenset({Phase.TRANSFERRING, Phase.DECODING}),
    (BlocksGranted, DECODE_LEG): _BINDING,
    (BlocksRefused, DECODE_LEG): _BINDING,
    (DecodeStarted, DECODE_LEG): frozenset({Phase.TRANSFERRING}),
    (TokensEmitted, DECODE_LEG): frozenset({Phase.DECODING}),
    (GrowthNeeded, DECODE_LEG): frozenset({Phase.DECODING}),
    (Preempted, DECODE_LEG): frozenset({Phase.DECODING}),
    (TaskFailed, PREFILL_LEG): frozenset(Phase),
    (TaskFailed, DECODE_LEG): frozenset(Phase),
}


class ReportHandler:
    """Applies reports to the sequences of the present tries; others only free their legs."""

    def __init__(self, state: RouterState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def handle(
        self, worker_id: WorkerId, reports: Seq[Report], load: WorkerLoad | None, now: float
    ) -> list[Action]:
        """One frame of one worker."""
        view = self._state.fleet.get(worker_id)
        if view is None:
            return []
        if load is not None:
            self._state.fleet.take_load(view, load)
        actions: list[Action] = []
        for report in reports:
            actions += self._apply(view, report, now)
        return actions

    def extension_answered(self, event: ExtensionAnswered) -> list[Action]:
        """The ledger's word on a growing response goes to its worker."""
        leg = self._state.legs.get(event.claim.task_id, DECODE_LEG)
        if (
            leg is None
            or leg.claim != event.claim
            or leg.worker_id is None
            or leg.state is not LegState.HELD
        ):
            return []
        view = self._state.fleet.get(leg.worker_id)
        if view is not None:
            view.is_starving = not event.granted
        if event.granted:
            self._state.legs.grow(leg, event.num_blocks)
        num_blocks = event.num_blocks if event.granted else 0
        return [SendCommand(leg.worker_id, GrantGrowth(leg.task_id, num_blocks))]

    def _apply(self, view: WorkerView, report: Report, now: float) -> list[Action]:
        worker_id, role = view.hello.worker_id, view.role
        if isinstance(report, TaskReleased):
            return self._released(view, report, now)
        sequence = self._state.sequence_by_task.get(report.task_id)
        leg = None if sequence is None else sequence.leg(role)
        if sequence is None or leg is None or leg.worker_id != worker_id:
            return []  # an earlier try's worker; its TaskReleased is all that matters
        if not _is_in_turn(report, role, sequence, leg):
            why = f"worker {worker_id} sent {type(report).__name__} out of turn"
            return self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        match report:
            case TokensEmitted():
                return self._tokens(sequence, role, report, now)
            case PrefillStarted():
                if sequence.phase is Phase.PREFILLING:
                    sequence.exclude_worker_queue(now)
                return []
            case KvPushed():
                return [] if sequence.decode is None else [TransferHolding(sequence.decode.claim)]
            case BlocksGranted():
                leg.target = report.target
                sequence.early_binding = sequence.phase is Phase.PREFILLING
                actions = self._scheduler.push_to_target(sequence)
                if sequence.phase is Phase.GENERATION_QUEUED:
                    actions += self._scheduler.bind(sequence, now)
                return actions
            case BlocksRefused():
                self._state.fleet.pause(worker_id, now)
                actions = self._state.legs.close(leg)
                self._scheduler.requeue(sequence, leg)
                return actions
            case DecodeStarted():
                assert leg.target is not None  # TRANSFERRING begins with a target
                export = leg.target.export
                sequence.num_blocks_moved += leg.num_kv_blocks
                sequence.num_bytes_moved += leg.num_kv_blocks * export.block_bytes
                sequence.transport = export.transport
                sequence.move(Change.DECODE_STARTED, now)
                return []
            case GrowthNeeded():
                sequence.num_extensions += 1
                return [Extend(leg.claim, report.num_blocks, sequence.num_extensions)]
            case Preempted():
                self._state.legs.ending(leg)
                return self._scheduler.try_again(sequence, Change.PREEMPTED, "preempted", now)
            case TaskFailed():
                return self._failed(sequence, role, report, now)
            case _:
                assert_never(report)

    def _tokens(
        self, sequence: Sequence, role: Role, tokens: TokensEmitted, now: float
    ) -> list[Action]:
        if tokens.first_token_index != len(sequence.output_token_ids):
            why = f"a worker sent token {tokens.first_token_index} out of turn"
            return self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        sequence.output_token_ids.extend(tokens.token_ids)
        self._state.counters.num_output_tokens += len(tokens.token_ids)
        if sequence.first_token_at_s is None:
            sequence.first_token_at_s = now
        sequence.last_token_at_s = now
        actions: list[Action] = [EmitTokens(sequence.request_id, sequence.index, tokens)]
        if tokens.finish_reason is not None:
            return actions + self._finish(sequence, role, tokens, now)
        if role == PREFILL_LEG:
            assert sequence.prefill is not None
            self._state.legs.computed(sequence.prefill)
            sequence.move(Change.PREFILL_FINISHED, now)
            if sequence.decode is None:
                self._scheduler.enqueue_generation(sequence)
            elif sequence.decode.target is not None:
                actions += self._scheduler.bind(sequence, now)
        return actions

    def _finish(
        self, sequence: Sequence, role: Role, tokens: TokensEmitted, now: float
    ) -> list[Action]:
        leg = sequence.leg(role)
        assert leg is not None
        assert tokens.finish_reason is not None
        self._state.legs.ending(leg)
        sequence.move(Change.SEQUENCE_ENDED, now)
        actions = self._scheduler.drop_try(sequence)
        num_output_tokens = len(sequence.output_token_ids)
        self._state.predictor.observe(sequence.request.spec.features(), num_output_tokens)
        finished = EmitFinished(
            request_id=sequence.request_id,
            index=sequence.index,
            finish_reason=tokens.finish_reason,
            matched_stop=tokens.matched_stop,
            num_output_tokens=num_output_tokens,
            timings=sequence.timings(now),
        )
        return [*actions, finished, *self._scheduler.close(sequence.request, None)]

    def _failed(
        self, sequence: Sequence, role: Role, report: TaskFailed, now: float
    ) -> list[Action]:
        leg = sequence.leg(role)
        assert leg is not None
        self._state.legs.ending(leg)
        if report.code == "transfer_failed" and leg.worker_id is not None:
            # It looks idle because it fails quickly: others first.
            self._state.fleet.pause(leg.worker_id, now)
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
        actions = self._state.legs.close(leg)
        sequence = self._state.sequence_by_task.get(report.task_id)
        if sequence is None or sequence.leg(leg.role) is not leg:
            return actions
        sequence.set_leg(leg.role, None)
        if leg.role == DECODE_LEG or sequence.phase in (Phase.PREFILLING, Phase.GENERATION_QUEUED):
            # Our own bookkeeping would have ended the try first: the worker dropped it.
            why = f"worker {view.hello.worker_id} gave the task up"
            actions += self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        return actions


def _is_in_turn(report: Report, role: Role, sequence: Sequence, leg: Leg) -> bool:
    if isinstance(report, BlocksGranted) and leg.target is not None:
        return False
    is_known = leg.state is LegState.HELD
    return is_known and sequence.phase in _TURNS.get((type(report), role), frozenset())
