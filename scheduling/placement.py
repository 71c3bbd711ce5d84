"""Which worker gets a task: the least backlog for prefill, the most free KVC for decode."""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduling.block_pool import num_blocks_for
from scheduling.ids import WorkerId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connected worker as placement sees it."""

    worker_id: WorkerId
    # Workers exchange KV only where this is equal.
    compatibility: str
    block_size: int
    # Blocks that a new task may be promised.
    num_free_blocks: int
    # Prompt tokens that are dispatched to the worker and not yet computed.
    num_backlog_tokens: int
    num_running: int


def prefill_preferences(
    candidates: Iterable[Candidate], num_tokens: int, max_backlog_tokens: int
) -> tuple[Candidate, ...]:
    """Workers that may start a prompt now, the soonest free first; all of one block size.

    A worker whose backlog has reached the limit is left out: what waits in the router's queue can
    still be reordered, what waits in a worker cannot.
    """
    fitting = [
        c
        for c in candidates
        if c.num_free_blocks >= num_blocks_for(num_tokens, c.block_size)
        and c.num_backlog_tokens < max_backlog_tokens
    ]
    fitting.sort(key=lambda c: (c.num_backlog_tokens, -c.num_free_blocks, c.worker_id))
    return tuple(c for c in fitting if c.block_size == fitting[0].block_size)


def decode_preferences(
    candidates: Iterable[Candidate], num_blocks: int, compatibility: str
) -> tuple[Candidate, ...]:
    """Compatible workers with room, the one with most free KVC first."""
    fitting = [
        c
        for c in candidates
        if c.compatibility == compatibility and c.num_free_blocks >= num_blocks
    ]
    fitting.sort(key=lambda c: (-c.num_free_blocks, c.num_running, c.worker_id))
    return tuple(fitting)
