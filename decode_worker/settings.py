"""The limits of a decode or mixed worker."""

from dataclasses import dataclass, field
from typing import Final

from scheduling.batch_time_recovery import Preemption
from scheduling.batching import BatchingRule
from scheduling.batching_rules import FillToTarget
from scheduling.feedback_queues import FeedbackQueues
from scheduling.victims import CheapestToRecompute, VictimRule

# Every token of an engine that only counts them.
NO_CONTENT: Final = 0
# Of `roomy_growth_blocks`: a quarter of the questions of 4, where no answer misses the blocks.
ROOMY_GROWTH_BLOCKS: Final = 16


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Limits of one decode worker."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    # Blocks asked for at a time when a response outgrows its prediction.
    growth_blocks: int = 4
    # Answers ask one block before they have no room, not when they have none.
    is_growing_ahead: bool = True
    # The same while three quarters of the pool are free; 0: as ever.
    roomy_growth_blocks: int = 0
    # Keep the KV of full blocks for later sequences that begin alike.
    prefix_caching: bool = True
    # Blocks of host memory for the KV of sequences that made room for others.
    num_swap_blocks: int = 0
    preemption: Preemption = Preemption.FIRST
    # How fast KV is copied there and back, assumed before the first copy.
    swap_bytes_per_s: float = 4e9
    # Tokens of one iteration of whoever computes prompts.
    max_num_batched_tokens: int = 1024
    # Prompts are computed here as well.
    is_mixed: bool = False
    # Passes are timed and a model of them is learnt even where nothing here decides by it.
    is_learning: bool = False
    # Who makes room for the others.
    victims: VictimRule = CheapestToRecompute()  # noqa: RUF009 - frozen
    # As soon as anybody lacks a block; else only when nobody can go on.
    is_eager: bool = False
    # Those in host memory let newcomers go first that are due sooner.
    parked_yields: bool = False
    # Answers in place that are refused blocks wait beside their KV, without a slot, for the
    # router's word; else they keep the slot and ask again.
    outgrown_wait_in_line: bool = False
    # What an iteration holds where prompts are computed here as well.
    batching: BatchingRule = field(default_factory=lambda: FillToTarget(1024))
    # While a pass of answers runs, the next is planned (decode_worker/planning_ahead.py).
    plans_ahead: bool = False
    # More than 1 is for an engine that only counts tokens, a simulator's: answers that go on have
    # no outputs, several steps are one plan, and so many tokens are told as one.
    max_untold_tokens: int = 1

    @property
    def takes_turns(self) -> bool:
        """Answers and prompts preempt each other, and host memory counts as room."""
        return self.is_mixed and isinstance(self.batching, FeedbackQueues)

    @property
    def makes_room(self) -> bool:
        """Answers that can wait may make room for prompts that cannot, which then go first."""
        return self.is_mixed and self.parked_yields and not self.takes_turns

    @property
    def num_host_blocks(self) -> int | None:
        """Of host memory, that count as room; None where they do not."""
        if not self.takes_turns:
            return None
        return 0 if self.preemption is Preemption.RECOMPUTE else self.num_swap_blocks

    @property
    def needs_model(self) -> bool:
        """Somebody wants to know what passes take."""
        decides = self.preemption is Preemption.CHEAPER and self.num_swap_blocks > 0
        return decides or self.is_learning
