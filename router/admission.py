"""Whether a worker with room for a task's first blocks should take it: the policy's rule, asked.

A router knows its own tasks. What others have on the worker counts as held for good, as far as the
worker's load shows it: cautious where several routers share workers, exact where there is one.
"""

import math
from collections.abc import Iterator

from router.leg import LegState
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView
from scheduling.admission import Demand
from scheduling.block_pool import num_blocks_for

# How many workers are asked about for one task; whoever is preferred less is fuller still.
_MAX_ASKED = 8


def decode_blocks(state: RouterState, sequence: Sequence, block_size: int) -> int:
    """Blocks that its prompt, and the answer as far as the policy says, are given to begin."""
    num_kv_tokens, num_response_tokens = sequence.num_kv_tokens, sequence.num_response_tokens
    by_rule = state.policy.allocation.num_decode_blocks(
        num_kv_tokens, num_response_tokens, block_size
    )
    return max(by_rule, num_blocks_for(num_kv_tokens + sequence.num_tokens_again, block_size))


def cut_blocks(state: RouterState, sequence: Sequence, block_size: int) -> int:
    """The least that it may begin with, where nowhere is room for what it is to be given."""
    num_tokens = math.ceil(sequence.num_response_tokens * state.policy.least_share)
    num_ahead = max(1, num_tokens, sequence.num_tokens_again)
    return num_blocks_for(sequence.num_kv_tokens + num_ahead, block_size)


def admitting(
    state: RouterState, candidates: tuple[WorkerView, ...], sequence: Sequence
) -> tuple[WorkerView, ...]:
    """Those of the preferred workers that should take the task, in the same order."""
    if not state.policy.admission.needs_demands or sequence.has_made_room:
        return candidates
    most = sequence.num_tokens_at_most
    return tuple([v for v in candidates[:_MAX_ASKED] if _admits(state, v, sequence, most)])


def _admits(state: RouterState, view: WorkerView, sequence: Sequence, at_most: int) -> bool:
    rule, size = state.policy.admission, view.hello.block_size
    num_blocks = view.num_general_blocks - _num_foreign_blocks(view)
    num_answers = len(view.decode_legs) + 1
    # One that is ending holds whole blocks.
    num_tokens = view.num_tokens_at_most + at_most + num_answers * size
    if rule.admits_any(num_answers, num_tokens, num_blocks, size):
        return True
    running = list(_demands(state, view))
    return rule.admits(running, _demand(state, sequence), num_blocks, size)


def _demands(state: RouterState, view: WorkerView) -> Iterator[Demand]:
    for leg in view.decode_legs.values():
        sequence = state.sequence_by_task.get(leg.task_id)
        if sequence is None or sequence.decode is not leg:
            # Ending: its blocks are on their way back.
            yield Demand(leg.num_blocks * view.hello.block_size, 0)
        elif leg.state is not LegState.PARKED:  # it goes on when there is room
            yield _demand(state, sequence)


def _demand(state: RouterState, sequence: Sequence) -> Demand:
    num_output = sequence.num_output_tokens
    num_tokens = len(sequence.request.spec.prompt_token_ids) + num_output
    return Demand(num_tokens, _num_remaining(state, sequence, num_output))


def _num_remaining(state: RouterState, sequence: Sequence, num_output: int) -> int:
    """Expected tokens still to come."""
    if num_output >= sequence.predicted.mean:
        # It outlived its prediction: ask again, knowing that.
        features = sequence.request.spec.features(num_output_tokens=num_output)
        sequence.predicted = state.predictor.predict(features)
    at_most = sequence.request.spec.stop.max_tokens - num_output
    return max(1, min(at_most, sequence.predicted.mean - num_output))


def _num_foreign_blocks(view: WorkerView) -> int:
    num_held = view.hello.num_blocks - view.load.num_free_blocks
    return max(0, num_held - view.num_promised_blocks)
