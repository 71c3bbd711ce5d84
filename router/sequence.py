"""The router's record of requests and their sequences."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from router.events import PREFILL_LEG, PhaseTimings, RequestSpec, Role
from router.leg import Leg
from router.preemptions import Preemptions
from router.timeline import Entry, Timeline
from scheduling.goals import DueTimes
from scheduling.ids import RequestId, TaskId
from scheduling.lifecycle import TERMINAL, Change, Phase, advance
from scheduling.messages import SequenceSpec
from scheduling.policy import WaitingTask
from scheduling.prediction import ResponseLength
from scheduling.prefix_chain import PromptPrefix
from scheduling.token_pace import TokenPace

# Room for so many tokens more, twice over, is what the first comes back with that made room.
LEAST_TOKENS_AGAIN = 64


@dataclass(slots=True)
class Request:
    """One Generate call."""

    spec: RequestSpec
    arrival_at_s: float
    # None where the caller set none.
    deadline_at_s: float | None
    # The router's own, of all prompts and answers.
    prefill_pace: TokenPace = field(default_factory=TokenPace)
    answer_pace: TokenPace = field(default_factory=TokenPace)
    sequences: list["Sequence"] = field(default_factory=list)
    gpu_work_spent: bool = False
    # Names the prompt's blocks.
    prefix: PromptPrefix = field(init=False)
    # Position in the prompt of the token whose logprob is passed on next, where these are wanted.
    next_scored_token: int = 1

    @property
    def is_prompt_scored(self) -> bool:
        """The caller has all logprobs of the prompt that it wants."""
        spec = self.spec
        is_wanted = spec.sampling.num_prompt_logprobs is not None
        return not is_wanted or self.next_scored_token >= len(spec.prompt_token_ids)

    def __post_init__(self) -> None:
        spec = self.spec
        self.prefix = spec.prefix or PromptPrefix(spec.prompt_token_ids, spec.cache_salt)

    @property
    def is_over(self) -> bool:
        """No sequence will produce anything more."""
        return all(sequence.phase in TERMINAL for sequence in self.sequences)


@dataclass(slots=True)
class Sequence:
    """One answer of a request. Each try at it has a task id of its own, so that what an earlier
    try's workers still say cannot be mistaken for the present one's."""

    request: Request
    index: int
    predicted: ResponseLength
    # Of the present try.
    task_id: TaskId
    phase_since_s: float
    phase: Phase = Phase.RECEIVED
    output_token_ids: list[int] = field(default_factory=list)
    # Of these, how many another router had sent before.
    num_resumed_tokens: int = 0
    prefill: Leg | None = None
    decode: Leg | None = None
    # Its next reservation covers more than a newcomer's, so that it does not make room for ever.
    has_made_room: bool = False
    num_extensions: int = 0
    preemptions: Preemptions = field(default_factory=Preemptions)
    num_migrations: int = 0
    num_evacuations: int = 0
    num_corruptions: int = 0
    # How often a worker was asked to make room for its prompt.
    num_room_wishes: int = 0
    # How often a worker said that another's transfer failed which this one waited for.
    num_prefix_losses: int = 0
    # Prompt tokens whose KV no try had to compute; None before the first began.
    num_cached_tokens: int | None = None
    num_blocks_skipped: int = 0
    # What the latest try borrowed of another answer when it began.
    num_blocks_borrowed: int = 0
    early_binding: bool = False
    prefill_worker: str = ""
    decode_worker: str = ""
    num_blocks_moved: int = 0
    num_bytes_moved: int = 0
    # What prefill workers pushed, and how long they were at it.
    num_bytes_pushed: int = 0
    push_s: float = 0.0
    transport: str = ""
    seconds_by_phase: dict[Phase, float] = field(default_factory=dict)
    first_token_at_s: float | None = None
    last_token_at_s: float | None = None
    timeline: Timeline = field(default_factory=Timeline)
    # Tokens that are known to be there though no frame has brought them: a simulation counts them.
    num_unheard: Callable[["Sequence"], int] | None = None
    # The prediction that it arrived with; `predicted` follows what is known since.
    first_predicted: ResponseLength = field(init=False)

    def __post_init__(self) -> None:
        self.first_predicted = self.predicted

    @property
    def num_tries(self) -> int:
        """How often its computation was begun, or will have been."""
        return 1 + self.preemptions.num_recomputations + self.num_migrations + self.num_evacuations

    @property
    def num_failures(self) -> int:
        """Tries that ended because a worker was lost or failed; only so many are allowed."""
        # After the first loss of a prefix a try shares no transfer: whoever loses more has failed.
        return self.num_migrations - min(1, self.num_prefix_losses)

    @property
    def request_id(self) -> RequestId:
        """The request this answer belongs to."""
        return self.request.spec.request_id

    @property
    def num_kv_tokens(self) -> int:
        """Tokens whose KV a prefill worker has to compute."""
        return len(self.request.spec.prompt_token_ids) + self.num_output_tokens

    @property
    def num_output_tokens(self) -> int:
        """Output so far, in frames or not."""
        if self.num_unheard is None or self.phase is not Phase.DECODING:
            return len(self.output_token_ids)
        return len(self.output_token_ids) + self.num_unheard(self)

    @property
    def prefill_prefix(self) -> PromptPrefix | None:
        """What may save a prefill worker work; None where it must compute all of the prompt."""
        is_all_needed = self.request.spec.sampling.num_prompt_logprobs is not None
        if is_all_needed and not self.request.is_prompt_scored:
            return None
        return self.request.prefix

    @property
    def num_tokens_at_most(self) -> int:
        """Prompt and the longest answer: what one pair of workers must be able to hold."""
        spec = self.request.spec
        return len(spec.prompt_token_ids) + spec.stop.max_tokens

    @property
    def num_response_tokens(self) -> int:
        """Upper bound on the tokens still to come, by prediction."""
        predicted = self.predicted.bound - self.num_output_tokens
        return min(self._num_remaining_at_most, max(1, predicted, self.num_tokens_again))

    @property
    def num_tokens_again(self) -> int:
        """The least that one which has made room gets more of before it comes back; 0 of others.

        As much again as it has, and twice as much with every time: however long it may become, it
        asks for more a logarithmic number of times, without room for the longest answer that its
        caller allows, which hardly any answer uses.
        """
        if not self.has_made_room:
            return 0
        least = LEAST_TOKENS_AGAIN << min(self.preemptions.num_ways_back, 32)
        return min(self._num_remaining_at_most, max(self.num_output_tokens, least))

    @property
    def _num_remaining_at_most(self) -> int:
        return self.request.spec.stop.max_tokens - self.num_output_tokens

    def move(self, change: Change, now: float, why: str = "") -> None:
        """Take one row of the transition table and account for the time in the phase left."""
        target = advance(self.phase, change)
        spent = self.seconds_by_phase.get(self.phase, 0.0) + now - self.phase_since_s
        self.seconds_by_phase[self.phase] = spent
        self.phase, self.phase_since_s = target, now
        num_output_tokens, num_tries = len(self.output_token_ids), self.num_tries
        place = self._place()
        self.timeline.add(Entry(now, change, target, *place, num_output_tokens, num_tries, why))

    def exclude_worker_queue(self, now: float) -> None:
        """Count the time since dispatch as queueing: the worker has only now begun."""
        spent = self.seconds_by_phase.get(Phase.PROMPT_QUEUED, 0.0) + now - self.phase_since_s
        self.seconds_by_phase[Phase.PROMPT_QUEUED] = spent
        self.phase_since_s = now
        self.timeline.begun(now)

    def note_cached(self, num_tokens: int) -> None:
        """A try began behind so many cached tokens; what an earlier try computed is not counted."""
        num_prompt = min(num_tokens, len(self.request.spec.prompt_token_ids))
        known = self.num_cached_tokens
        self.num_cached_tokens = num_prompt if known is None else min(known, num_prompt)

    def resume(self, token_ids: tuple[int, ...] | None) -> bool:
        """Go on from what another router's caller has; False where that is the whole answer."""
        if token_ids is None:
            self.phase = Phase.FINISHED
            return False
        self.output_token_ids = list(token_ids)
        self.num_resumed_tokens = len(token_ids)
        return True

    @property
    def due(self) -> DueTimes:
        """When what of it is due."""
        request, at_most = self.request, self.request.spec.stop.max_tokens
        return DueTimes(
            request.spec.goals,
            request.arrival_at_s,
            self.first_token_at_s,
            num_tokens=len(self.output_token_ids),
            num_expected=min(self.predicted.mean, at_most),
            num_at_most=min(self.predicted.bound, at_most),
            prompt_s=request.prefill_pace.seconds(self.num_kv_tokens),
            token_s=request.answer_pace.seconds(1),
            deadline_at_s=math.inf if request.deadline_at_s is None else request.deadline_at_s,
            num_resumed=self.num_resumed_tokens,
        )

    def as_waiting(self) -> WaitingTask:
        """The view that orderings get."""
        due = self.due
        return WaitingTask(
            arrival_at_s=due.arrival_at_s,
            deadline_at_s=due.next_token_at_s,
            num_occupied_blocks=self._num_parked_blocks,
            num_prompt_tokens=self.num_kv_tokens,
            num_response_tokens=self.num_response_tokens,
            answer_due_at_s=due.end_at_s,
        )

    def as_spec(self, now: float) -> SequenceSpec:
        """What a worker needs to go on from here."""
        spec = self.request.spec
        is_prompt_ahead = self.phase in (Phase.PROMPT_QUEUED, Phase.PREFILLING)
        sampling = spec.sampling
        if self.index:
            sampling = replace(sampling, seed=(sampling.seed + self.index) % 2**64)
        if sampling.num_prompt_logprobs is not None and self.request.is_prompt_scored:
            # An earlier try, or another answer to the same prompt, has sent them.
            sampling = replace(sampling, num_prompt_logprobs=None)
        return SequenceSpec(
            prompt_token_ids=spec.prompt_token_ids,
            output_token_ids=tuple(self.output_token_ids),
            sampling=sampling,
            stop=spec.stop,
            cache_salt=spec.cache_salt,
            tpot_s=self.due.gap_s(now, is_prompt_ahead=is_prompt_ahead),
            tbt_s=spec.tbt_s,
            num_predicted_tokens=min(self.predicted.bound, spec.stop.max_tokens),
        )

    @property
    def is_swapped(self) -> bool:
        """It waits, or is about to go on, with its KV in a decode worker's host memory."""
        return self.decode is not None and self.decode.parked_at_s is not None

    def leg(self, role: Role) -> Leg | None:
        """The present try's leg of that role."""
        return self.prefill if role == PREFILL_LEG else self.decode

    def set_leg(self, role: Role, leg: Leg | None) -> None:
        """Attach or drop a leg."""
        if role == PREFILL_LEG:
            self.prefill = leg
        else:
            self.decode = leg

    def timings(self, now: float) -> PhaseTimings:
        """The account of the whole life, at its end."""
        arrival_at_s = self.request.arrival_at_s
        first = self.first_token_at_s if self.first_token_at_s is not None else now
        last = self.last_token_at_s if self.last_token_at_s is not None else first
        num_gaps = len(self.output_token_ids) - self.num_resumed_tokens - 1
        seconds = self.seconds_by_phase
        return PhaseTimings(
            prompt_queue_s=seconds.get(Phase.PROMPT_QUEUED, 0.0),
            prefill_s=seconds.get(Phase.PREFILLING, 0.0),
            generation_queue_s=seconds.get(Phase.GENERATION_QUEUED, 0.0),
            transfer_s=seconds.get(Phase.TRANSFERRING, 0.0),
            decode_s=seconds.get(Phase.DECODING, 0.0),
            ttft_s=first - arrival_at_s,
            tpot_s=(last - first) / num_gaps if num_gaps > 0 else None,
            total_s=now - arrival_at_s,
            num_blocks_moved=self.num_blocks_moved,
            num_bytes_moved=self.num_bytes_moved,
            num_blocks_skipped=self.num_blocks_skipped,
            num_blocks_borrowed=self.num_blocks_borrowed,
            transport=self.transport,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            early_binding=self.early_binding,
            num_preemptions=self.preemptions.num_times,
            num_swaps=self.preemptions.num_swaps,
            num_bytes_pushed=self.num_bytes_pushed,
            push_s=self.push_s,
            num_migrations=self.num_migrations + self.num_evacuations,
        )

    @property
    def _num_parked_blocks(self) -> int:
        """Blocks that it keeps from others while it waits; host memory keeps nobody waiting."""
        if self.prefill is not None and not self.is_swapped:
            return self.prefill.num_blocks
        decode = self.decode
        return decode.num_blocks if decode is not None and decode.is_staged else 0

    def _place(self) -> tuple[str, int]:
        """The worker that has the KV in the present phase, or fills it, and on how many blocks."""
        leg = None
        if self.is_swapped:
            leg = self.decode
        elif self.phase in (Phase.PREFILLING, Phase.GENERATION_QUEUED):
            # A swapped-out answer waits on its decode worker.
            leg = self.prefill or self.decode
        elif self.phase in (Phase.TRANSFERRING, Phase.DECODING):
            leg = self.decode
        if leg is None or leg.worker_id is None:
            return "", 0
        return leg.worker_id, leg.num_blocks
