"""Which worker gets a task: the soonest done for prefill, the most free KVC for decode.

What is cached is work that need not be done, and never worth more than that: where the worker that
has a prompt is further behind than computing it anew would cost, or fuller by more than the blocks
that need not travel, another one gets it. So a prefix that everybody uses spreads by itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduling.backlog import NO_LIMIT
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
    # Full blocks of the prompt that are there, or will be.
    num_hit_blocks: int = 0
    # Larger for whoever was given a task later; 0: never.
    last_taken: int = 0
    # It gets new prompts while its backlog is below this.
    max_backlog_tokens: int = NO_LIMIT

    def num_tokens_to_compute(self, num_tokens: int) -> int:
        """What of a prompt of so many tokens is not there; the last token never is."""
        num_hits = min(self.num_hit_blocks, (num_tokens - 1) // self.block_size)
        return num_tokens - num_hits * self.block_size


def prefill_preferences(candidates: Iterable[Candidate], num_tokens: int) -> tuple[Candidate, ...]:
    """Workers that may start a prompt now, the best first; all of one block size.

    The cost is the time until the prompt is computed plus the work that it makes, both in tokens:
    a prompt that begins like one in work waits for that rather than keep a second worker busy.

    A worker whose backlog has reached its limit is left out: what waits in the router's queue can
    still be reordered, what waits in a worker cannot.
    """
    fitting = [
        c
        for c in candidates
        if c.num_free_blocks >= num_blocks_for(num_tokens, c.block_size)
        and c.num_backlog_tokens < c.max_backlog_tokens
    ]

    def order(c: Candidate) -> tuple[int, int, int, WorkerId]:
        to_compute = c.num_tokens_to_compute(num_tokens)
        cost = c.num_backlog_tokens + 2 * to_compute
        return cost, to_compute, -c.num_free_blocks, c.worker_id

    fitting.sort(key=order)
    return tuple(c for c in fitting if c.block_size == fitting[0].block_size)


def mixed_preferences(
    candidates: Iterable[Candidate],
    num_tokens: int,
    num_blocks_for_size: Callable[[int], int],
) -> tuple[Candidate, ...]:
    """Mixed workers that may start a prompt now, the best first; all of one block size.

    `num_blocks_for_size` tells what the task is to get, by block size. The cost is that of
    `prefill_preferences`; of equals, the one with more room and fewer running answers.
    """
    fitting = [
        c
        for c in candidates
        if c.num_free_blocks >= num_blocks_for_size(c.block_size)
        and c.num_backlog_tokens < c.max_backlog_tokens
    ]

    def order(c: Candidate) -> tuple[int, int, int, int, WorkerId]:
        cost = c.num_backlog_tokens + 2 * c.num_tokens_to_compute(num_tokens)
        num_spare_blocks = c.num_free_blocks + c.num_hit_blocks
        return cost, -num_spare_blocks, c.num_running, c.last_taken, c.worker_id

    fitting.sort(key=order)
    return tuple(c for c in fitting if c.block_size == fitting[0].block_size)


def decode_preferences(
    candidates: Iterable[Candidate], num_blocks: int, compatibility: str
) -> tuple[Candidate, ...]:
    """Compatible workers with room: most free KVC first, blocks that need not travel included.

    Equals take turns: else all that comes to an idle cluster would go to one worker's cache.
    """
    fitting = [
        c
        for c in candidates
        if c.compatibility == compatibility and c.num_free_blocks >= num_blocks
    ]

    def order(c: Candidate) -> tuple[int, int, int, WorkerId]:
        num_spare_blocks = c.num_free_blocks + c.num_hit_blocks
        return -num_spare_blocks, c.num_running, c.last_taken, c.worker_id

    fitting.sort(key=order)
    return tuple(fitting)
