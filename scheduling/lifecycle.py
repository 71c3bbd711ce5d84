"""The life of one sequence: phases, and the only transitions between them.

This table is the enum, the span names, the log events, the metric label and the documentation
(docs/life-of-a-request.md is generated from it). It does not know which process it runs in.
"""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a sequence is. The router's view is the one that counts."""

    RECEIVED = "received"
    PROMPT_QUEUED = "prompt_queued"
    PREFILLING = "prefilling"
    GENERATION_QUEUED = "generation_queued"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Change(StrEnum):
    """What happened to a sequence, in the past tense."""

    ADMITTED = "admitted"
    PREFILL_DISPATCHED = "prefill_dispatched"
    PREFILL_FINISHED = "prefill_finished"
    DECODE_BOUND = "decode_bound"
    DECODE_STARTED = "decode_started"
    KEPT_IN_PLACE = "kept_in_place"
    SEQUENCE_ENDED = "sequence_ended"
    PLACE_LOST = "place_lost"
    PREEMPTED = "preempted"
    OUTGROWN = "outgrown"
    SWAPPED_OUT = "swapped_out"
    SWAPPED_IN = "swapped_in"
    WORKER_LOST = "worker_lost"
    EVACUATED = "evacuated"
    GAVE_UP = "gave_up"
    CALLER_LEFT = "caller_left"
    OPERATOR_CANCELLED = "operator_cancelled"


TERMINAL = frozenset({Phase.FINISHED, Phase.FAILED, Phase.CANCELLED})

NOBODY = "nobody"
PREFILL = "prefill worker"
BOTH = "prefill worker (source); decode worker (destination, unread until complete)"
DECODE = "decode worker"
HOST = "decode worker (host memory)"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table."""

    source: Phase
    change: Change
    target: Phase
    # Who owns the sequence's KV blocks once the row has been taken.
    kv_owner: str
    meaning: str


def _ways_out(source: Phase) -> tuple[Transition, ...]:
    return (
        Transition(
            source, Change.GAVE_UP, Phase.FAILED, NOBODY, "refused, or failed once too often"
        ),
        Transition(
            source,
            Change.CALLER_LEFT,
            Phase.CANCELLED,
            NOBODY,
            "client gone or far too slow, or deadline passed",
        ),
        Transition(
            source, Change.OPERATOR_CANCELLED, Phase.CANCELLED, NOBODY, "an operator ended it"
        ),
    )


def _lost(source: Phase) -> tuple[Transition, ...]:
    return (
        Transition(
            source,
            Change.WORKER_LOST,
            Phase.PROMPT_QUEUED,
            NOBODY,
            "a leg died or its transfer failed: recompute prompt and output so far",
        ),
        Transition(
            source,
            Change.EVACUATED,
            Phase.PROMPT_QUEUED,
            NOBODY,
            "an operator empties a worker: recompute prompt and output so far elsewhere",
        ),
    )


TRANSITIONS: tuple[Transition, ...] = (
    Transition(
        Phase.RECEIVED,
        Change.ADMITTED,
        Phase.PROMPT_QUEUED,
        NOBODY,
        "checked, tokenised, response length predicted",
    ),
    *_ways_out(Phase.RECEIVED),
    Transition(
        Phase.PROMPT_QUEUED,
        Change.PREFILL_DISPATCHED,
        Phase.PREFILLING,
        PREFILL,
        "prefill KVC reserved; decode KVC too if there is room (early binding)",
    ),
    *_ways_out(Phase.PROMPT_QUEUED),
    Transition(
        Phase.PREFILLING,
        Change.PREFILL_FINISHED,
        Phase.GENERATION_QUEUED,
        PREFILL,
        "first token emitted; KV parked where it was computed until there is room to decode",
    ),
    Transition(
        Phase.PREFILLING,
        Change.SEQUENCE_ENDED,
        Phase.FINISHED,
        NOBODY,
        "the first token was the last",
    ),
    Transition(
        Phase.PREFILLING,
        Change.PLACE_LOST,
        Phase.PROMPT_QUEUED,
        NOBODY,
        "it was to begin in blocks that another lends, and these were gone when its turn came",
    ),
    *_lost(Phase.PREFILLING),
    *_ways_out(Phase.PREFILLING),
    Transition(
        Phase.GENERATION_QUEUED,
        Change.DECODE_BOUND,
        Phase.TRANSFERRING,
        BOTH,
        "decode blocks granted; at once where binding was early (late binding: from the GT queue)",
    ),
    Transition(
        Phase.GENERATION_QUEUED,
        Change.KEPT_IN_PLACE,
        Phase.DECODING,
        DECODE,
        "a mixed worker computed the prompt and goes on with the answer in the same blocks",
    ),
    Transition(
        Phase.GENERATION_QUEUED,
        Change.SWAPPED_IN,
        Phase.DECODING,
        DECODE,
        "its KV was in the decode worker's host memory and is back on its device",
    ),
    Transition(
        Phase.GENERATION_QUEUED,
        Change.PREEMPTED,
        Phase.PROMPT_QUEUED,
        NOBODY,
        "its place is needed, or others have room first: recompute prompt and output so far",
    ),
    *_lost(Phase.GENERATION_QUEUED),
    *_ways_out(Phase.GENERATION_QUEUED),
    Transition(
        Phase.TRANSFERRING,
        Change.DECODE_STARTED,
        Phase.DECODING,
        DECODE,
        "every block arrived with the right generation and checksum",
    ),
    *_lost(Phase.TRANSFERRING),
    *_ways_out(Phase.TRANSFERRING),
    Transition(
        Phase.DECODING,
        Change.SEQUENCE_ENDED,
        Phase.FINISHED,
        NOBODY,
        "stop condition met or max_tokens reached",
    ),
    Transition(
        Phase.DECODING,
        Change.PREEMPTED,
        Phase.PROMPT_QUEUED,
        NOBODY,
        "no KVC left to grow: recompute prompt and output so far",
    ),
    Transition(
        Phase.DECODING,
        Change.OUTGROWN,
        Phase.GENERATION_QUEUED,
        DECODE,
        "no KVC left to grow: it waits in place for as much as is predicted anew",
    ),
    Transition(
        Phase.DECODING,
        Change.SWAPPED_OUT,
        Phase.GENERATION_QUEUED,
        HOST,
        "no KVC left to grow: KV parked in host memory until the same worker has room for it",
    ),
    *_lost(Phase.DECODING),
    *_ways_out(Phase.DECODING),
)

_TABLE = {(row.source, row.change): row for row in TRANSITIONS}


class IllegalTransition(RuntimeError):
    """Our own code tried a step that the table does not have."""

    def __init__(self, phase: Phase, change: Change) -> None:
        super().__init__(f"no transition from {phase.value} by {change.value}")
        self.phase, self.change = phase, change


def advance(phase: Phase, change: Change) -> Phase:
    """The phase after `change`. Raises: IllegalTransition."""
    row = _TABLE.get((phase, change))
    if row is None:
        raise IllegalTransition(phase, change)
    return row.target
