"""The limits of a decode or mixed worker."""

from dataclasses import dataclass, field
from typing import Final

from decode_worker.kv_swapping import Preemption
from scheduling.batching import BatchingRule
from scheduling.batching_rules import FillToTarget
from scheduling.victims import CheapestToRecompute, VictimRule

# Every token of an engine that only counts them.
NO_CONTENT: Final = 0


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Limits of one decode worker."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    # Blocks asked for at a time when a response outgrows its prediction.
    growth_blocks: int = 4
    # Keep the KV of full blocks for later sequences that begin alike.
    prefix_caching: bool = True
    # Blocks of host memory for the KV of sequences that made room for others.
    num_swap_blocks: int = 0
    preemption: Preemption = Preemption.AUTO
    # Who makes room for the others.
    victims: VictimRule = CheapestToRecompute()  # noqa: RUF009 - frozen
    # As soon as anybody lacks a block; else only when nobody can go on.
    is_eager: bool = False
    # What an iteration holds where prompts are computed here as well.
    batching: BatchingRule = field(default_factory=lambda: FillToTarget(1024))
    # More than 1 is for an engine that only counts tokens, a simulator's: answers that go on have
    # no outputs, several steps are one plan, and so many tokens are told as one.
    max_untold_tokens: int = 1
