"""Takes in what workers report: tokens, granted blocks, delivered KV, released tasks."""

from typing import assert_never

from router.answers_in_place import room_answered, wait_again, wait_for_room
from router.evacuation import evacuate
from router.events import (
    DECODE_LEG,
    PREFILL_LEG,
    Action,
    EmitFinished,
    EmitPromptLogprobs,
    EmitTokens,
    Extend,
    ExtensionAnswered,
    ReportsArrived,
    Role,
    SendCommand,
    TransferHolding,
)
from router.guests_in_line import guest_began, guest_refused
from router.in_place import place_refused
from router.scheduler import Scheduler
from router.sequence import Leg, LegState, Sequence
from router.state import RouterState
from router.swapped import came_back, note_swap, park
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
    GrantGrowth,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    PromptScored,
    Report,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)

# What a worker of which role may say of a task in which phase. A worker is another process:
# anything else is its defect, and costs the task a try instead of this process its life.
_BINDING = frozenset({Phase.PREFILLING, Phase.GENERATION_QUEUED})
_TURNS: dict[tuple[type[Report], Role], frozenset[Phase]] = {
    (PrefillStarted, PREFILL_LEG): frozenset({Phase.PREFILLING}),
    (PromptScored, PREFILL_LEG): frozenset({Phase.PREFILLING}),
    (TokensEmitted, PREFILL_LEG): frozenset({Phase.PREFILLING}),
    # Swapped out already, where the word from the prefill worker is slow.
    (KvPushed, PREFILL_LEG): frozenset(
        {Phase.TRANSFERRING, Phase.DECODING, Phase.GENERATION_QUEUED}
    ),
    (BlocksGranted, DECODE_LEG): _BINDING,
    (BlocksRefused, DECODE_LEG): _BINDING,
    (DecodeStarted, DECODE_LEG): frozenset({Phase.TRANSFERRING, Phase.GENERATION_QUEUED}),
    # While it prefills: on a mixed worker.
    (PrefillStarted, DECODE_LEG): frozenset({Phase.PREFILLING}),
    (PromptScored, DECODE_LEG): frozenset({Phase.PREFILLING}),
    (TokensEmitted, DECODE_LEG): frozenset({Phase.PREFILLING, Phase.DECODING}),
    (GrowthNeeded, DECODE_LEG): frozenset({Phase.DECODING}),
    (BlocksInherited, DECODE_LEG): _BINDING | {Phase.DECODING},
    (Preempted, DECODE_LEG): frozenset({Phase.DECODING}),
    (SwappedOut, DECODE_LEG): frozenset({Phase.DECODING}),
    (TaskFailed, PREFILL_LEG): frozenset(Phase),
    (TaskFailed, DECODE_LEG): frozenset(Phase),
}


class ReportHandler:
    """Applies reports to the sequences of the present tries; others only free their legs."""

    def __init__(self, state: RouterState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler
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
            plain = self._plain_token(view, report, now)
            if plain is not None:
                actions.append(plain)
            else:
                has_news = True
                actions += self._apply(view, report, now)
        self.has_news = has_news
        if view.load.admission is Admission.EVACUATING:
            actions += evacuate(self._state, self._scheduler, view, now)
        return actions

    def _plain_token(self, view: WorkerView, report: Report, now: float) -> EmitTokens | None:
        """The next tokens of an answer that goes on: nearly every report. None for all others."""
        if type(report) is not TokensEmitted or report.finish_reason is not None:
            return None
        sequence = self._state.sequence_by_task.get(report.task_id)
        if sequence is None or sequence.phase is not Phase.DECODING:
            return None
        leg, output = sequence.decode, sequence.output_token_ids
        if (
            leg is None
            or leg.worker_id != view.hello.worker_id
            or leg.state is not LegState.HELD
            or report.first_token_index != len(output)
            or sequence.first_token_at_s is None
        ):
            return None
        output.extend(report.token_ids)
        self._state.counters.num_output_tokens += len(report.token_ids)
        sequence.last_token_at_s = now
        return EmitTokens(sequence.request.spec.request_id, sequence.index, report)

    def extension_answered(self, event: ExtensionAnswered, now: float) -> list[Action]:
        """The ledger's word on a growing response goes to its worker."""
        if event.is_inherited:
            return []  # the worker has them, whatever the ledger says
        leg = self._state.legs.get(event.claim.task_id, DECODE_LEG)
        if (
            leg is None
            or leg.claim != event.claim
            or leg.worker_id is None
            or leg.state is not LegState.HELD
        ):
            return []
        if leg.is_staged:
            return room_answered(self._state, leg, event.granted, now)
        view = self._state.fleet.get(leg.worker_id)
        if view is not None:
            view.is_starving = not event.granted
            self._state.fleet.touch(view)
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
                    sequence.note_cached(report.num_cached_tokens)
                    sequence.num_blocks_borrowed = leg.num_borrowed_blocks
                return []
            case PromptScored():
                return self._prompt_scored(sequence, report, now)
            case KvPushed():
                sequence.num_bytes_pushed += report.num_bytes
                sequence.push_s += report.copy_s
                decode = sequence.decode
                is_held = decode is not None and decode.state is LegState.HELD
                return [TransferHolding(decode.claim)] if decode is not None and is_held else []
            case BlocksGranted():
                leg.target = report.target
                sequence.early_binding = sequence.phase is Phase.PREFILLING
                actions = self._scheduler.push_to_target(sequence)
                if sequence.phase is Phase.GENERATION_QUEUED:
                    actions += self._scheduler.bind(sequence, now)
                return actions
            case BlocksRefused() if leg.is_staged:
                guest_refused(self._state, sequence, leg)
                return []
            case BlocksRefused() if leg.place is not None:
                actions = place_refused(self._state, sequence, leg, now)
                self._scheduler.requeue(sequence, leg)
                return actions
            case BlocksRefused():
                self._state.fleet.pause(worker_id, now)
                if sequence.is_swapped:
                    return park(self._state, sequence, now)
                actions = self._state.legs.close(leg)
                self._scheduler.requeue(sequence, leg)
                return actions
            case DecodeStarted() if leg.is_staged:
                guest_began(self._state, sequence, leg, now)
                return []
            case DecodeStarted() if sequence.is_swapped:
                came_back(sequence, now)
                return []
            case DecodeStarted():
                assert leg.target is not None  # TRANSFERRING begins with a target
                export = leg.target.export
                num_moved = leg.num_kv_blocks - leg.target.first_block_index
                sequence.num_blocks_moved += num_moved
                sequence.num_bytes_moved += num_moved * export.block_bytes
                sequence.num_blocks_skipped += leg.target.first_block_index
                sequence.transport = report.transport or export.transport
                sequence.move(Change.DECODE_STARTED, now)
                return []
            case GrowthNeeded():
                sequence.num_extensions += 1
                return [Extend(leg.claim, report.num_blocks, sequence.num_extensions)]
            case BlocksInherited(_, num_blocks):
                self._state.legs.inherit(leg, num_blocks)
                sequence.num_extensions += 1
                number = sequence.num_extensions
                return [Extend(leg.claim, num_blocks, number, is_inherited=True)]
            case Preempted(keeps_kv=True):
                return wait_again(self._state, view, sequence, leg, now)
            case Preempted():
                self._state.legs.ending(leg)
                return self._scheduler.try_again(sequence, Change.PREEMPTED, "preempted", now)
            case SwappedOut() if view.is_swapping_itself:
                note_swap(self._state, sequence)
                return []
            case SwappedOut():
                # Its blocks are free, so others that starve may be asked again.
                view.is_starving, view.paused_until_s = False, 0.0
                self._state.fleet.touch(view)
                return park(self._state, sequence, now)
            case TaskFailed():
                return self._failed(sequence, role, report, now)
            case _:
                assert_never(report)

    def _prompt_scored(self, sequence: Sequence, report: PromptScored, now: float) -> list[Action]:
        """Pass on what no earlier try and no other answer to this prompt has sent already."""
        request, logprobs = sequence.request, report.logprobs
        num_prompt_tokens = len(request.spec.prompt_token_ids)
        is_wanted = request.spec.sampling.num_prompt_logprobs is not None
        is_gap = logprobs.first_token_index > request.next_scored_token
        if not is_wanted or is_gap or logprobs.end_token_index > num_prompt_tokens:
            why = f"a worker sent the logprobs of prompt token {logprobs.first_token_index}"
            return self._scheduler.try_again(sequence, Change.WORKER_LOST, f"{why} unasked", now)
        news = logprobs.starting_at(request.next_scored_token)
        if not news.num_tokens:
            return []
        request.next_scored_token = news.end_token_index
        return [EmitPromptLogprobs(request.spec.request_id, news)]

    def _tokens(
        self, sequence: Sequence, role: Role, tokens: TokensEmitted, now: float
    ) -> list[Action]:
        if tokens.first_token_index != len(sequence.output_token_ids):
            why = f"a worker sent token {tokens.first_token_index} out of turn"
            return self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        if not sequence.request.is_prompt_scored:
            why = "a worker sent a token before the logprobs of the prompt"
            return self._scheduler.try_again(sequence, Change.WORKER_LOST, why, now)
        sequence.output_token_ids.extend(tokens.token_ids)
        self._state.counters.num_output_tokens += len(tokens.token_ids)
        if sequence.first_token_at_s is None:
            sequence.first_token_at_s = now
        sequence.last_token_at_s = now
        actions: list[Action] = [EmitTokens(sequence.request_id, sequence.index, tokens)]
        if tokens.finish_reason is not None:
            return actions + self._finish(sequence, role, tokens, now)
        if sequence.phase is Phase.PREFILLING:
            leg = sequence.leg(role)
            assert leg is not None
            self._state.legs.computed(leg)
            num_computed = sequence.num_kv_tokens - 1 - (sequence.num_cached_tokens or 0)
            self._state.prefill_pace.observe(num_computed, now - sequence.phase_since_s)
            sequence.move(Change.PREFILL_FINISHED, now)
            if leg.is_staged:
                wait_for_room(self._state, sequence)
                return actions
            if leg.is_in_place:
                sequence.move(Change.KEPT_IN_PLACE, now)
                return actions
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
        self._state.learn_from(sequence)
        finished = EmitFinished(
            request_id=sequence.request_id,
            index=sequence.index,
            finish_reason=tokens.finish_reason,
            matched_stop=tokens.matched_stop,
            num_output_tokens=num_output_tokens,
            timings=sequence.timings(now),
            num_cached_tokens=sequence.num_cached_tokens or 0,
            predicted=sequence.first_predicted,
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
        if role == PREFILL_LEG and sequence.phase is Phase.DECODING:
            sequence.set_leg(role, None)  # all of its KV has arrived: it is not needed any more
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


def _is_in_turn(report: Report, role: Role, sequence: Sequence, leg: Leg) -> bool:
    if isinstance(report, BlocksGranted) and (
        leg.target is not None or report.target.first_block_index > leg.num_kv_blocks
    ):
        return False
    if isinstance(report, BlocksInherited) and report.num_blocks > leg.num_borrowed_blocks:
        return False
    if sequence.phase is Phase.GENERATION_QUEUED and not _fits_parking(report, sequence, leg):
        return False
    if sequence.phase is Phase.PREFILLING and role == DECODE_LEG:
        is_of_prompt = isinstance(report, PrefillStarted | PromptScored | TokensEmitted)
        is_of_binding = isinstance(report, BlocksGranted | BlocksRefused)
        is_refused_guest = leg.place is not None and isinstance(report, BlocksRefused)
        if leg.is_in_place and is_of_binding and not is_refused_guest:
            return False
        if is_of_prompt and not leg.is_in_place:
            return False
    is_parked = leg.state in (LegState.PARKED, LegState.RESUMING)
    is_known = leg.state is LegState.HELD or (is_parked and isinstance(report, TaskFailed))
    return is_known and sequence.phase in _TURNS.get((type(report), role), frozenset())


def _fits_parking(report: Report, sequence: Sequence, leg: Leg) -> bool:
    """A GT waits with its KV on the prefill worker, in a worker's host memory, or in place."""
    if leg.is_staged:
        is_word_on_place = isinstance(report, DecodeStarted | BlocksRefused)
        is_any_time = isinstance(report, TaskFailed | BlocksInherited)
        return is_any_time or (is_word_on_place and leg.is_place_asked)
    if sequence.is_swapped:
        return not isinstance(report, BlocksGranted)
    return not isinstance(report, DecodeStarted | KvPushed)
