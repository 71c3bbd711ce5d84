"""How many prompt tokens may lie in front of a worker before it gets no more. Pure.

What waits in the router's queue can still be reordered, what waits in a worker cannot; but a worker
that has less than an iteration in front of it computes half empty ones until it hears of more.
"""

from dataclasses import dataclass
from typing import Final

NO_LIMIT: Final = 2**63
# Of a worker that does not tell how large its iterations are: an older one.
UNTOLD_TOKENS: Final = 1024
# One that is being computed, and one that follows while the router hears of the first.
_NUM_ITERATIONS = 2


@dataclass(frozen=True, slots=True)
class BacklogLimit:
    """The rule of one router for all its workers."""

    # Of every worker alike; None: two of its own iterations.
    max_tokens: int | None = None
    # Mixed workers get every prompt that they have room for.
    is_open_on_mixed: bool = False

    def tokens(self, role: str, max_num_batched_tokens: int) -> int:
        """A worker of that role gets prompts while its backlog is below this.

        `max_num_batched_tokens` is the most that one of its iterations holds; 0: it did not say.
        """
        if self.is_open_on_mixed and role == "mixed":
            return NO_LIMIT
        if self.max_tokens is not None:
            return self.max_tokens
        return _NUM_ITERATIONS * max_num_batched_tokens or UNTOLD_TOKENS
