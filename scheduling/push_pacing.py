"""When a prefill worker pushes KV: at the end of each pass, or together with what comes later.

A push costs a fixed time, on the path and perhaps on the cores that compute the passes; what it
brings over before the prompt's end need not travel after it. Asked before each pass. Pure: figures
in, yes or no out. The derivation is docs/decisions/push-overlap.md.
"""

from enum import StrEnum

from scheduling.batch_time import BatchShape, BatchTimeModel
from scheduling.value import value


class KvOverlap(StrEnum):
    """How the KV of a prompt goes to where its answer is computed."""

    # As the figures of path and passes say.
    AUTO = "auto"
    # What is final after each pass, at once.
    CHUNK = "chunk"
    # All of it, when the prompt is computed.
    WHOLE = "whole"


@value
class PushPath:
    """What pushes to one peer take, as measured."""

    # Of each push, whatever it holds.
    fixed_s: float
    per_block_s: float
    # Seconds by which passes get longer for each second of pushing beside them, in [0, 1].
    pass_share: float = 0.0

    def seconds(self, num_blocks: int) -> float:
        """Of one push; nothing takes none."""
        return self.fixed_s + num_blocks * self.per_block_s if num_blocks else 0.0


@value
class PassAhead:
    """A pass of the prompt that is still to come, on its own."""

    seconds: float
    # That are final when it has ended, and were not before.
    num_blocks: int


@value
class PushState:
    """Before a pass: what of a prompt could be pushed now, and what is still to come."""

    num_ready_blocks: int
    # How long the path is still taken by earlier pushes.
    busy_s: float
    # In their order; the last one ends the prompt.
    passes: tuple[PassAhead, ...]


# Differences below are rounding.
_TIE_S = 1e-9
# What a tie costs should passes be shorter than predicted: looked at with this share of them.
_HURRY = 0.25


def is_push_due(path: PushPath, state: PushState) -> bool:
    """Whether pushing now lets the last block arrive sooner than waiting for the next pass.

    Four ways to go on are compared: now or not, and from then on after every pass or only once the
    prompt is computed. Asked before every pass, it is never later than either of these two by
    themselves, if passes and pushes take what is predicted: what was best before a pass is among
    the four again after it. Where nothing is gained it waits, which makes fewer pushes; unless
    that would cost something as soon as passes are shorter than predicted.
    """
    if not state.num_ready_blocks:
        return False
    gained_s = _gained_s(path, state, state.passes)
    if abs(gained_s) > _TIE_S:
        return gained_s > 0
    hurried = tuple(PassAhead(one.seconds * _HURRY, one.num_blocks) for one in state.passes)
    return _gained_s(path, state, hurried) > _TIE_S


def _gained_s(path: PushPath, state: PushState, passes: tuple[PassAhead, ...]) -> float:
    """By how much sooner the last block is there if what is ready is pushed now."""
    waiting_s, pushing_s = (
        min(_last_block_s(path, state, passes, now, each)[0] for each in (False, True))
        for now in (False, True)
    )
    return waiting_s - pushing_s


def _last_block_s(
    path: PushPath, state: PushState, passes: tuple[PassAhead, ...], now: bool, each: bool
) -> tuple[float, float]:
    """Seconds until the last block is there, and until the prompt is computed.

    `now`: what is ready is pushed first; `each`: so is what is, before every later pass.
    """
    num_ready, at_s, free_at_s = state.num_ready_blocks, 0.0, max(0.0, state.busy_s)
    is_pushing = now
    for one in passes:
        if is_pushing and num_ready:
            free_at_s = max(at_s, free_at_s) + path.seconds(num_ready)
            num_ready = 0
        at_s += slowed_s(one.seconds, free_at_s - at_s, path.pass_share)
        num_ready += one.num_blocks
        is_pushing = each
    return max(at_s, free_at_s) + path.seconds(num_ready), at_s


def slowed_s(pass_s: float, busy_s: float, pass_share: float) -> float:
    """What a pass takes while the path is busy so long from its beginning on."""
    busy_s = max(0.0, busy_s)
    if busy_s * (1 - pass_share) <= pass_s:
        return pass_s + busy_s * pass_share
    return pass_s / (1 - pass_share)


# --- the passes of a prompt ---------------------------------------------------------------------

# At most so many between the next and the last; of a longer row, several are taken for one.
MAX_PASSES = 64


@value
class RestOfPrompt:
    """What of a prompt is still to be computed, and what of it somebody waits for."""

    # Tokens [start, end).
    start: int
    end: int
    block_size: int
    # The blocks [first_block, first_block + num_target_blocks) are to be pushed.
    first_block: int
    num_target_blocks: int
    # Of those that are final by `start`.
    num_ready_blocks: int
    busy_s: float

    def num_final(self, num_tokens: int) -> int:
        """Blocks to be pushed that are final when so many tokens are computed."""
        if num_tokens >= self.end:
            # The last block may be partly filled.
            return self.num_target_blocks
        num_full = num_tokens // self.block_size - self.first_block
        return max(0, min(num_full, self.num_target_blocks))

    def state(self, passes: tuple[PassAhead, ...]) -> PushState:
        """Before the first of these passes."""
        return PushState(self.num_ready_blocks, self.busy_s, passes)


def passes_of(
    model: BatchTimeModel, rest: RestOfPrompt, num_next: int, num_per_pass: int
) -> tuple[PassAhead, ...]:
    """To the end of the prompt: a pass of `num_next` tokens, then of `num_per_pass` each."""
    passes = [_ahead(model, rest, rest.start, num_next, 1)]
    start = rest.start + num_next
    num_full = max(0, rest.end - start - 1) // num_per_pass
    size = -(-num_full // MAX_PASSES) or 1
    for first in range(0, num_full, size):
        num_passes = min(size, num_full - first)
        passes.append(_ahead(model, rest, start, num_per_pass, num_passes))
        start += num_passes * num_per_pass
    if start < rest.end:
        passes.append(_ahead(model, rest, start, rest.end - start, 1))
    return tuple(passes)


def _ahead(
    model: BatchTimeModel, rest: RestOfPrompt, start: int, num_tokens: int, num_passes: int
) -> PassAhead:
    """So many passes of so many tokens each, of which the one in the middle stands for all."""
    middle = start + num_tokens * ((num_passes - 1) // 2)
    seconds = model.seconds(BatchShape().with_chunk(middle, num_tokens))
    end = start + num_tokens * num_passes
    return PassAhead(num_passes * seconds, rest.num_final(end) - rest.num_final(start))


# --- where a prompt would be computed in one pass -----------------------------------------------

# Of the tokens that are left, what the first of two passes may compute.
_CUTS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
# Passes of fewer tokens are not made on purpose: kernels are not busy with them.
MIN_CUT_TOKENS = 512
# By what share of the pass a cut may make the first token later, whatever it gains.
MAX_LATER = 0.05


def tokens_before_cut(path: PushPath, model: BatchTimeModel, rest: RestOfPrompt) -> int:
    """How many of the tokens the next pass should compute: all, or fewer and the others after it.

    A cut lets KV travel while the rest is computed, and costs another pass: weights are read
    again, kernels are smaller. The first token is later by as much, so a cut must bring the last
    block forward by more than that, and no cut makes it later by much: its caller may wait for it
    with a goal that is known to the router alone. That two passes take less than one is not
    believed: a cut counts as one smallest pass at least.
    """
    num_tokens = rest.end - rest.start
    least_s = model.seconds(BatchShape().with_chunk(rest.start, 1))
    whole_s, whole_ends_s = _earliest_s(path, model, rest, num_tokens)
    best, best_s = num_tokens, 0.0
    for share in _CUTS:
        # To the end of a block: what lies behind it could not be pushed.
        end = int(rest.start + share * num_tokens) // rest.block_size * rest.block_size
        num_first = end - rest.start
        if min(num_first, num_tokens - num_first) < MIN_CUT_TOKENS:
            continue
        cut_s, cut_ends_s = _earliest_s(path, model, rest, num_first)
        later_s = max(cut_ends_s - whole_ends_s, least_s)
        if later_s > MAX_LATER * whole_ends_s:
            continue
        saved_s = (whole_s - whole_ends_s) - (cut_s - cut_ends_s)
        gained_s = saved_s - 2 * later_s
        if gained_s > best_s:
            best, best_s = num_first, gained_s
    return best


def _earliest_s(
    path: PushPath, model: BatchTimeModel, rest: RestOfPrompt, num_next: int
) -> tuple[float, float]:
    """Of the last block, and the end of the prompt with it, in one pass or two."""
    passes = passes_of(model, rest, num_next, rest.end - rest.start)
    state = rest.state(passes)
    return min(
        _last_block_s(path, state, passes, now, each)
        for now in (False, True)
        for each in (False, True)
    )
