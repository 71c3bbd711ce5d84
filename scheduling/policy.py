"""Policies are named values: one choice for each decision that router and workers take.

Those that there are by name: scheduling/policies.py.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduling.admission import Admission, WhatIsReserved
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batch_time_recovery import Preemption
from scheduling.batching import BatchingRule
from scheduling.batching_rules import (
    FillToTarget,
    PromptsFirst,
    WaitingRatio,
    WholePromptsMixed,
)
from scheduling.block_pool import num_blocks_for
from scheduling.deadline_fill import DeadlineFill
from scheduling.dynamic_chunk import ChunkSettings
from scheduling.feedback_queues import FeedbackQueues
from scheduling.generation_queue import GenerationQueue, OneByOne
from scheduling.length_choice import length_predictor_named, needs_foresight
from scheduling.length_groups import LengthGroups
from scheduling.mlfq import MlfqSettings
from scheduling.modelled_filling import FillToKnee, FillWithinGoal
from scheduling.prediction import LengthPredictor
from scheduling.task_queue import Key
from scheduling.value import value
from scheduling.victims import (
    CheapestToRecompute,
    VictimRule,
)


@value
class WaitingTask:
    """What an ordering may look at."""

    arrival_at_s: float
    # When its next token is due.
    deadline_at_s: float
    # KV blocks the task holds while it waits: parked on a prefill worker.
    num_occupied_blocks: int
    # Tokens whose KV has to be computed.
    num_prompt_tokens: int
    # Predicted tokens still to come, an upper bound.
    num_response_tokens: int
    # When its whole answer is due, as long as it is predicted to be.
    answer_due_at_s: float = math.inf


class Ordering(Protocol):
    """Sort keys of the two queues; smaller goes first."""

    def prompt_key(self, task: WaitingTask) -> Key: ...

    def generation_key(self, task: WaitingTask) -> Key: ...


@dataclass(frozen=True, slots=True)
class ArrivalOrder:
    """First come, first served, in both queues."""

    def prompt_key(self, task: WaitingTask) -> Key:
        """Arrival only."""
        return (task.arrival_at_s,)

    def generation_key(self, task: WaitingTask) -> Key:
        """Arrival only."""
        return (task.arrival_at_s,)


# Widths where nobody sets others, in a router and in a simulation.
DEADLINE_BUCKET_S = 0.5
KVC_BUCKET_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class DeadlineThenOccupancy:
    """Deadline bucket first, then the larger KVC holder, then the longer task.

    Bucketing makes nearly equal deadlines tie, so that the next key acts. Large holders go early
    because KVC then frees early; long tasks go early because short ones fill what is left.
    Source: EcoServe, section Ordering.
    """

    deadline_bucket_s: float = DEADLINE_BUCKET_S
    kvc_bucket_blocks: int = KVC_BUCKET_BLOCKS
    # By when the whole answer is due, as published; otherwise its next token.
    is_of_answer: bool = False

    def __post_init__(self) -> None:
        if self.deadline_bucket_s <= 0 or self.kvc_bucket_blocks < 1:
            raise ValueError(f"buckets must have a width, got {self}")

    def prompt_key(self, task: WaitingTask) -> Key:
        """(deadline bucket, −KVC bucket, −prompt length)."""
        return (*self._shared(task), -float(task.num_prompt_tokens))

    def generation_key(self, task: WaitingTask) -> Key:
        """(deadline bucket, −KVC bucket, −predicted response length)."""
        return (*self._shared(task), -float(task.num_response_tokens))

    def _shared(self, task: WaitingTask) -> tuple[float, float]:
        due_at_s = task.answer_due_at_s if self.is_of_answer else task.deadline_at_s
        # No deadline is the last of all, and inf // width is not a number.
        bucket = due_at_s // self.deadline_bucket_s if math.isfinite(due_at_s) else due_at_s
        return (
            bucket,
            -float(task.num_occupied_blocks // self.kvc_bucket_blocks),
        )


class Allocation(Protocol):
    """How many decode blocks a generation task gets before it starts."""

    def num_decode_blocks(
        self, num_kv_tokens: int, num_response_tokens: int, block_size: int
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class ExactAllocation:
    """Room for the prompt and the whole predicted response (EcoServe, exact-allocation)."""

    def num_decode_blocks(
        self, num_kv_tokens: int, num_response_tokens: int, block_size: int
    ) -> int:
        """Blocks for prompt and prediction."""
        return num_blocks_for(num_kv_tokens + num_response_tokens, block_size)


@dataclass(frozen=True, slots=True)
class BlockAllocation:
    """Room for the prompt and some tokens more; the rest is asked for on the way (vLLM)."""

    num_tokens_ahead: int = 1

    def __post_init__(self) -> None:
        if self.num_tokens_ahead < 1:
            raise ValueError(f"num_tokens_ahead must be at least 1, got {self.num_tokens_ahead}")

    def num_decode_blocks(
        self, num_kv_tokens: int, num_response_tokens: int, block_size: int
    ) -> int:
        """Blocks for the prompt and so many tokens, or for the whole predicted response."""
        num_ahead = max(1, min(self.num_tokens_ahead, num_response_tokens))
        return num_blocks_for(num_kv_tokens + num_ahead, block_size)


class Batching(StrEnum):
    """What an iteration of a mixed worker holds; the rules are in `batching_rules`."""

    # Decode tokens first, prompts cut to fill the rest.
    FILL = "fill"
    # The same, but no longer than the tightest goal for gaps allows.
    FILL_WITHIN_GOAL = "fill-within-goal"
    # Up to where larger passes gain little, filled with whole prompts as far as some fit.
    FIT_TO_KNEE = "fit-to-knee"
    PROMPTS_FIRST = "prompts-first"
    WHOLE_MIXED = "whole-mixed"
    WAITING_RATIO = "waiting-ratio"
    BY_DEADLINE = "by-deadline"  # prompts alone while answers are ahead of their pace
    # As many prompt tokens as the tightest goal of this iteration allows.
    DYNAMIC = "dynamic"
    FEEDBACK = "feedback"  # by the queues of the worker, which preempt at every token


class Sharing(StrEnum):
    """Whether a task may write where another has been allocated blocks that it needs only later."""

    NONE = "none"
    # In the middle of what a running answer has not written (EcoServe, KVC pipelining).
    PIPELINE = "pipeline"
    EMBED = "embed"  # at the end of its allocation (CacheOPT, embedding)


# What new answers leave of a decode worker's pool; its costs and gains are in docs/faults.md.
GROWTH_RESERVE = 1 / 16


@dataclass(frozen=True, slots=True)
class Policy:
    """One choice for each decision."""

    name: str
    ordering: Ordering
    allocation: Allocation
    batching: Batching = Batching.FILL
    # What iterations hold, where these are dynamic.
    chunks: ChunkSettings = ChunkSettings()  # noqa: RUF009 - frozen
    # Of `length_choice`: how long an answer will be, and how much room that means.
    predictor: str = "quantiles"
    bound: str | None = None
    # Where no mixed worker has room for all of the answer, it begins with room for this share of
    # what is predicted, and grows (CacheOPT, "cut"). 1: it waits.
    least_share: float = 1.0
    growth_reserve: float = GROWTH_RESERVE
    # Answers ask for room before they have none (CacheOPT, proactive allocation).
    is_growing_ahead: bool = True
    # Whether waiting prompts may begin in blocks of running answers.
    sharing: Sharing = Sharing.NONE
    # Whether a task may join those that run on a worker with room for its first blocks.
    admission: Admission = WhatIsReserved()  # noqa: RUF009 - has no state
    # Who makes room, and whether as soon as anybody lacks a block or only when nobody can go on.
    victims: VictimRule = CheapestToRecompute()  # noqa: RUF009 - frozen
    is_preempting_eagerly: bool = False
    # What becomes of the KV of those who make room.
    preemption: Preemption = Preemption.CHEAPER
    # A sequence that made room comes back with room for as much again as it has, and for twice as
    # much with every time. Without this only a rule whose first never makes room gets everybody to
    # an end.
    reserves_more_again: bool = True
    # Where answers wait in host memory, newcomers that are due sooner go first; otherwise nothing
    # new starts there.
    parked_yields: bool = False
    # A prompt whose first token is about to be late gets room on a mixed worker at the cost of
    # running answers that are ahead of their goals (AccelGen, urgent requests).
    urgent_preempts: bool = False
    # A prompt whose first token cannot be in time any more goes behind those that can be.
    late_yields: bool = False
    # Answers of equal predicted length that wait for room get it together, a gap too small for the
    # next in order goes to others (EcoServe, SyncDecoupled); otherwise one by one.
    is_grouping: bool = False
    # On a mixed worker a prompt gets room for itself only; its answer waits there for its own when
    # the prompt is computed (EcoServe, decoupled allocation); otherwise it gets all at once.
    is_decoupled: bool = False
    # And where no block is left for an answer that outgrows its prediction, it waits there again,
    # with its KV, for as much as is predicted anew (EcoServe, offload-free preemption); otherwise
    # it keeps its place in the batch and goes on with the next block that is freed.
    outgrown_waits_again: bool = False
    # Mixed workers get every prompt that they have room for, in host memory too, and order them.
    is_queued_on_workers: bool = False
    # Made for prefill and decode on separate workers; others are made for mixed ones.
    is_disaggregated: bool = False

    @property
    def needs_foresight(self) -> bool:
        """It must be told how long answers will be: only a simulation can."""
        return needs_foresight(self.predictor)

    @property
    def outgrown_wait_in_line(self) -> bool:
        """There is a line, and answers come back to it."""
        return self.is_decoupled and self.outgrown_waits_again

    def new_predictor(self) -> LengthPredictor:
        """A predictor that knows nothing yet."""
        return length_predictor_named(self.predictor, self.bound)

    def new_generation_queue(self, max_tasks: int, length_quantum: int) -> GenerationQueue:
        """An empty queue for answers that wait for room."""
        if self.is_grouping:
            return LengthGroups(max_tasks, length_quantum=length_quantum)
        if self.sharing is Sharing.PIPELINE:
            return LengthGroups(max_tasks, length_quantum=length_quantum, is_grouping=False)
        return OneByOne(max_tasks)

    def batching_rule(self, max_tokens: int, max_seqs: int) -> BatchingRule:
        """The rule of its mixed workers, within the limits of one iteration."""
        match self.batching:
            case Batching.FILL:
                return FillToTarget(max_tokens)
            case Batching.FILL_WITHIN_GOAL:
                return FillWithinGoal(OnlineBatchTime(), max_tokens)
            case Batching.FIT_TO_KNEE:
                return FillToKnee(OnlineBatchTime(), max_tokens)
            case Batching.PROMPTS_FIRST:
                return PromptsFirst(max_tokens, max_seqs)
            case Batching.WHOLE_MIXED:
                return WholePromptsMixed(max_seqs, max_tokens)
            case Batching.WAITING_RATIO:
                return WaitingRatio(max_tokens)
            case Batching.BY_DEADLINE:
                return DeadlineFill(OnlineBatchTime(), max_tokens)
            case Batching.DYNAMIC:
                return self.chunks.rule(OnlineBatchTime(), max_tokens)
            case Batching.FEEDBACK:
                return FeedbackQueues(OnlineBatchTime(), MlfqSettings(max_seqs, max_tokens))


def growth_reserve_blocks(num_blocks: int, share: float = GROWTH_RESERVE) -> int:
    """Blocks that only growing answers may take: EcoServe's cushion for under-prediction."""
    return int(num_blocks * share)
