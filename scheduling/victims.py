"""Which running sequence makes room for the others: orders of preemption. Pure.

A rule is a sort key; the smallest goes first. What becomes of the KV (host memory, or computed
again) is decided elsewhere.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from scheduling.ids import TaskId
from scheduling.task_queue import Key


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a rule may look at of a running sequence."""

    task_id: TaskId
    arrival_at_s: float
    # Prompt and output so far: what would be computed again.
    num_tokens: int
    # KVC that it occupies.
    num_blocks: int
    # inf where it has no goal.
    tpot_goal_s: float = math.inf
    # Predicted tokens still to come.
    num_remaining_tokens: int = 0
    # Of a multi-level feedback queue; 0 is the highest.
    queue: int = 0
    # What is left of the time until its next token is due; inf where it has no goal.
    slack_s: float = math.inf


class VictimRule(Protocol):
    """An order of preemption."""

    def key(self, candidate: Candidate) -> Key: ...


def in_order_of_preemption(candidates: Iterable[Candidate], rule: VictimRule) -> list[Candidate]:
    """The first is to make room first; equal ones by task id, so that the order is one."""
    return sorted(candidates, key=lambda candidate: (rule.key(candidate), candidate.task_id))


@dataclass(frozen=True, slots=True)
class LastArrived:
    """Who came last: those before it lose nothing by its presence. Source: vLLM; DistServe."""

    def key(self, candidate: Candidate) -> Key:
        """Arrival, descending."""
        return (-candidate.arrival_at_s,)


@dataclass(frozen=True, slots=True)
class CheapestToRecompute:
    """The shortest, prompt and output together."""

    def key(self, candidate: Candidate) -> Key:
        """Tokens, ascending."""
        return (candidate.num_tokens,)


@dataclass(frozen=True, slots=True)
class LoosestGoal:
    """The loosest TBT goal, then the longest to go, then what is cheap to evict.

    Bucketed, so that nearly equal goals tie and the next key acts. Source: CacheOPT, victim rule.
    """

    tpot_bucket_s: float = 0.05
    remaining_bucket_tokens: int = 32

    def __post_init__(self) -> None:
        if self.tpot_bucket_s <= 0 or self.remaining_bucket_tokens < 1:
            raise ValueError(f"buckets must have a width, got {self}")

    def key(self, candidate: Candidate) -> Key:
        """(−TPOT bucket, −bucket of remaining tokens, blocks)."""
        goal_s = candidate.tpot_goal_s
        # No goal is the loosest of all, and inf // width is not a number.
        bucket = goal_s // self.tpot_bucket_s if math.isfinite(goal_s) else goal_s
        remaining = candidate.num_remaining_tokens // self.remaining_bucket_tokens
        return (-bucket, -remaining, candidate.num_blocks)


@dataclass(frozen=True, slots=True)
class LowestQueue:
    """The lowest queue, and in it who came last. Source: FastServe."""

    def key(self, candidate: Candidate) -> Key:
        """(−queue, −arrival)."""
        return (-candidate.queue, -candidate.arrival_at_s)


@dataclass(frozen=True, slots=True)
class LargestSlack:
    """Who can wait longest; of those who can wait as long, the shortest.

    Source: AccelGen, room for urgent requests.
    """

    def key(self, candidate: Candidate) -> Key:
        """(−slack, tokens)."""
        return (-candidate.slack_s, candidate.num_tokens)
