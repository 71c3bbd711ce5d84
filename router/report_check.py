"""What a worker may say of a task, and when: everything else is the worker's defect."""

from router.events import DECODE_LEG, PREFILL_LEG, Role
from router.leg import Leg, LegState
from router.sequence import Sequence
from scheduling.block_leases import BlocksInherited
from scheduling.lifecycle import Phase
from scheduling.messages import (
    BlocksGranted,
    BlocksRefused,
    DecodeStarted,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    PromptScored,
    Report,
    SwappedOut,
    TaskFailed,
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


def is_in_turn(report: Report, sequence: Sequence, leg: Leg) -> bool:
    """Whether the worker of that leg may say this of the sequence now."""
    if isinstance(report, BlocksGranted) and (
        leg.target is not None or report.target.first_block_index > leg.num_kv_blocks
    ):
        return False
    if isinstance(report, BlocksInherited) and report.num_blocks > leg.num_borrowed_blocks:
        return False
    if isinstance(report, Preempted) and report.keeps_kv and not leg.is_in_place:
        return False
    if sequence.phase is Phase.GENERATION_QUEUED and not _fits_parking(report, sequence, leg):
        return False
    if sequence.phase is Phase.PREFILLING and leg.role == DECODE_LEG:
        is_of_prompt = isinstance(report, PrefillStarted | PromptScored | TokensEmitted)
        is_of_binding = isinstance(report, BlocksGranted | BlocksRefused)
        is_refused_guest = leg.place is not None and isinstance(report, BlocksRefused)
        if leg.is_in_place and is_of_binding and not is_refused_guest:
            return False
        if is_of_prompt and not leg.is_in_place:
            return False
    is_parked = leg.state in (LegState.PARKED, LegState.RESUMING)
    is_known = leg.state is LegState.HELD or (is_parked and isinstance(report, TaskFailed))
    return is_known and sequence.phase in _TURNS.get((type(report), leg.role), frozenset())


def _fits_parking(report: Report, sequence: Sequence, leg: Leg) -> bool:
    """A GT waits with its KV on the prefill worker, in a worker's host memory, or in place."""
    if leg.is_staged:
        is_word_on_place = isinstance(report, DecodeStarted | BlocksRefused)
        is_any_time = isinstance(report, TaskFailed | BlocksInherited)
        return is_any_time or (is_word_on_place and leg.is_place_asked)
    if sequence.is_swapped:
        return not isinstance(report, BlocksGranted)
    return not isinstance(report, DecodeStarted | KvPushed)
