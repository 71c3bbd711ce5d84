"""What one iteration of a worker holds: the question and the answer. Pure values.

Before every iteration the core of a worker describes its running sequences and its prompts, and a
`BatchingRule` says whether the sequences get their next token and which prompts are computed, by
how much. A rule holds no task and allocates nothing; the core does both. The rules are in
`batching_rules` and `dynamic_chunk`.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from scheduling.value import value


@value
class PromptWork:
    """A prompt on this worker that is not computed yet."""

    # >= 1.
    num_missing_tokens: int
    # What is computed, or will be shared when it begins.
    num_computed_tokens: int
    # When its first token is due; inf where nobody waits for it.
    due_at_s: float
    # Free blocks that it takes when it begins; 0 for one that has them.
    num_needed_blocks: int = 0


@value
class IterationState:
    """What a rule may look at."""

    now: float
    # Running sequences that have room for their next token.
    num_decode: int
    # Tokens, summed over them.
    decode_context: int
    # The earliest over running sequences; inf without any.
    next_token_due_at_s: float
    # The smallest TPOT goal of a running sequence; inf without any.
    tightest_tpot_s: float
    # Iterations since a prompt was computed.
    num_steps_without_prompt: int
    # Begun ones first, then the others in the order in which the router sent them.
    prompts: Sequence[PromptWork]
    # Of those not begun, how many (from the first) have slot and blocks now, all of them together.
    num_startable: int
    # How many of the prompts are begun; None: those of which something is computed.
    num_begun: int | None = None
    # The smallest goal for each single gap of a running sequence, not only their mean.
    tightest_tbt_s: float = math.inf
    # When the pass began that gave running sequences their newest tokens, and when these came.
    last_decode_at_s: float = -math.inf
    newest_tokens_at_s: float = -math.inf
    # KVC of the worker; where num_blocks is 0, rules do not look at KVC.
    num_free_blocks: int = 0
    num_blocks: int = 0

    @property
    def num_in_progress(self) -> int:
        """Prompts [0, num_in_progress) are begun: they have slot and blocks."""
        if self.num_begun is not None:
            return self.num_begun
        return sum(work.num_computed_tokens > 0 for work in self.prompts)

    @property
    def num_choosable(self) -> int:
        """Prompts [0, num_choosable) may be computed now: begun, or startable."""
        return min(len(self.prompts), self.num_in_progress + self.num_startable)


@value
class IterationChoice:
    """What the iteration computes."""

    # False: running sequences pause for this iteration.
    has_decodes: bool
    # (index into `prompts`, tokens > 0); an index at most once.
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of prompts, all chunks together."""
        return sum(num_tokens for _, num_tokens in self.chunks)


class BatchingRule(Protocol):
    """Chooses what is computed; the same state gives the same choice.

    For every state: no prompt twice, no more of it than is missing, none beyond `num_choosable`;
    and where there is anything to compute that the rule is made for, it computes some of it.
    """

    def choose(self, state: IterationState) -> IterationChoice: ...
