"""Policies are named values: an ordering of both queues and a rule for decode KVC.

Source: EcoServe, section Ordering (bucketed deadline, occupied KVC, length) and exact-allocation;
vLLM's scheduler for `fcfs` (arrival order, block-allocation).
"""

from dataclasses import dataclass, replace
from typing import Protocol

from scheduling.block_pool import num_blocks_for
from scheduling.task_queue import Key


@dataclass(frozen=True, slots=True)
class WaitingTask:
    """What an ordering may look at."""

    arrival_at_s: float
    # When its next token is due.
    deadline_at_s: float
    # KV blocks the task holds while it waits: parked on a prefill worker.
    num_occupied_blocks: int
    # Tokens whose KV has to be computed.
    num_prompt_tokens: int
    # Predicted tokens still to come, an upper bound.
    num_response_tokens: int


class Ordering(Protocol):
    """Sort keys of the two queues; smaller goes first."""

    def prompt_key(self, task: WaitingTask) -> Key: ...

    def generation_key(self, task: WaitingTask) -> Key: ...


@dataclass(frozen=True, slots=True)
class ArrivalOrder:
    """First come, first served, in both queues."""

    def prompt_key(self, task: WaitingTask) -> Key:
        """Arrival only."""
        return (task.arrival_at_s,)

    def generation_key(self, task: WaitingTask) -> Key:
        """Arrival only."""
        return (task.arrival_at_s,)


@dataclass(frozen=True, slots=True)
class DeadlineThenOccupancy:
    """Deadline bucket first, then the larger KVC holder, then the longer task.

    Bucketing makes nearly equal deadlines tie, so that the next key acts. Large holders go early
    because KVC then frees early; long tasks go early because short ones fill what is left.
    Source: EcoServe, section Ordering.
    """

    deadline_bucket_s: float = 0.5
    kvc_bucket_blocks: int = 4

    def prompt_key(self, task: WaitingTask) -> Key:
        """(deadline bucket, −KVC bucket, −prompt length)."""
        return (*self._shared(task), -float(task.num_prompt_tokens))

    def generation_key(self, task: WaitingTask) -> Key:
        """(deadline bucket, −KVC bucket, −predicted response length)."""
        return (*self._shared(task), -float(task.num_response_tokens))

    def _shared(self, task: WaitingTask) -> tuple[float, float]:
        return (
            task.deadline_at_s // self.deadline_bucket_s,
            -float(task.num_occupied_blocks // self.kvc_bucket_blocks),
        )


class Allocation(Protocol):
    """How many decode blocks a generation task gets before it starts."""

    def num_decode_blocks(
        self, num_kv_tokens: int, num_response_tokens: int, block_size: int
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class ExactAllocation:
    """Room for the prompt and the whole predicted response (EcoServe, exact-allocation)."""

    def num_decode_blocks(
        self, num_kv_tokens: int, num_response_tokens: int, block_size: int
    ) -> int:
        """Blocks for prompt and prediction."""
        return num_blocks_for(num_kv_tokens + num_response_tokens, block_size)


@dataclass(frozen=True, slots=True)
class BlockAllocation:
    """Room for the prompt and the next block; the rest is asked for on the way (vLLM)."""

    def num_decode_blocks(
        self, num_kv_tokens: int, num_response_tokens: int, block_size: int
    ) -> int:
        """Blocks for the prompt and for one more token."""
        return num_blocks_for(num_kv_tokens + 1, block_size)


@dataclass(frozen=True, slots=True)
class Policy:
    """One choice for each decision."""

    name: str
    ordering: Ordering
    allocation: Allocation


_ECOSERVE = Policy("ecoserve", DeadlineThenOccupancy(), ExactAllocation())

POLICIES: dict[str, Policy] = {
    "default": replace(_ECOSERVE, name="default"),
    "ecoserve": _ECOSERVE,
    "fcfs": Policy("fcfs", ArrivalOrder(), BlockAllocation()),
}


def policy_named(name: str, deadline_bucket_s: float, kvc_bucket_blocks: int) -> Policy:
    """The policy of that name with these bucket widths. Raises: KeyError for an unknown name."""
    policy = POLICIES[name]
    if isinstance(policy.ordering, DeadlineThenOccupancy):
        ordering = DeadlineThenOccupancy(deadline_bucket_s, kvc_bucket_blocks)
        return replace(policy, ordering=ordering)
    return policy


# What it costs and saves is in docs/faults.md.
GROWTH_RESERVE = 1 / 16


def growth_reserve_blocks(num_blocks: int, share: float = GROWTH_RESERVE) -> int:
    """Blocks that only growing responses may take, of a decode worker's pool.

    They are the cushion for under-predicted responses (EcoServe, section Reserved KVC).
    """
    return int(num_blocks * share)
