"""What workers have computed: prompts under way, their logprobs, tokens, and whole answers."""

from router.answers_in_place import wait_for_room
from router.events import Action, EmitFinished, EmitPromptLogprobs, EmitTokens
from router.leg import Leg, LegState
from router.scheduler import Scheduler
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView
from scheduling.lifecycle import Change, Phase
from scheduling.messages import PrefillStarted, PromptScored, Report, TokensEmitted


class Progress:
    """Brings sequences forward by what their workers computed."""

    def __init__(self, state: RouterState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def plain_token(self, view: WorkerView, report: Report, now: float) -> EmitTokens | None:
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

    def begun(self, sequence: Sequence, leg: Leg, report: PrefillStarted, now: float) -> None:
        """Its worker computes the prompt from now on."""
        if sequence.phase is Phase.PREFILLING:
            sequence.exclude_worker_queue(now)
            sequence.note_cached(report.num_cached_tokens)
            sequence.num_blocks_borrowed = leg.num_borrowed_blocks

    def scored(self, sequence: Sequence, report: PromptScored, now: float) -> list[Action]:
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

    def tokens(
        self, sequence: Sequence, leg: Leg, tokens: TokensEmitted, now: float
    ) -> list[Action]:
        """The next tokens of an answer; the first of a try says that its prompt is computed."""
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
            return actions + self._finish(sequence, leg, tokens, now)
        if sequence.phase is Phase.PREFILLING:
            actions += self._prompt_computed(sequence, leg, now)
        return actions

    def _prompt_computed(self, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
        self._state.legs.computed(leg)
        num_computed = sequence.num_kv_tokens - 1 - (sequence.num_cached_tokens or 0)
        self._state.prefill_pace.observe(num_computed, now - sequence.phase_since_s)
        sequence.move(Change.PREFILL_FINISHED, now)
        if leg.is_staged:
            wait_for_room(self._state, sequence)
            return []
        if leg.is_in_place:
            sequence.move(Change.KEPT_IN_PLACE, now)
            return []
        if sequence.decode is None:
            self._scheduler.enqueue_generation(sequence)
        elif sequence.decode.target is not None:
            return self._scheduler.bind(sequence, now)
        return []

    def _finish(
        self, sequence: Sequence, leg: Leg, tokens: TokensEmitted, now: float
    ) -> list[Action]:
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
