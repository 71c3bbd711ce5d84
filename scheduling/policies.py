"""The policies by name: the product's own, published ones, and baselines.

Source: EcoServe, section Ordering (bucketed deadline, occupied KVC, length) and exact-allocation;
vLLM's scheduler for `fcfs` (arrival order, block-allocation); the others where they are listed.
"""

from dataclasses import replace

from scheduling.admission import FuturePeak
from scheduling.batch_time_limits import DEFAULT_FRACTION
from scheduling.batch_time_recovery import Preemption
from scheduling.dynamic_chunk import ChunkSettings
from scheduling.policy import (
    ArrivalOrder,
    Batching,
    BlockAllocation,
    DeadlineThenOccupancy,
    ExactAllocation,
    Policy,
    Sharing,
)
from scheduling.victims import LargestSlack, LastArrived, LoosestGoal

# Blocks as answers grow, newcomers as far as the predicted peak allows; who is ahead of its pace
# makes room for others, late ones yield.
_DEFAULT = Policy(
    "default",
    DeadlineThenOccupancy(),
    BlockAllocation(num_tokens_ahead=64),
    Batching.BY_DEADLINE,
    growth_reserve=0.01,
    admission=FuturePeak(overcommit=1.2),
    victims=LargestSlack(),
    is_preempting_eagerly=True,
    parked_yields=True,
    late_yields=True,
)

_ECOSERVE = Policy(
    "ecoserve",
    DeadlineThenOccupancy(is_of_answer=True),
    ExactAllocation(),
    Batching.FIT_TO_KNEE,
    bound="padded",
    sharing=Sharing.PIPELINE,
    is_grouping=True,
    is_decoupled=True,
    outgrown_waits_again=True,
)

_SARATHI = Policy(
    "sarathi",
    ArrivalOrder(),
    BlockAllocation(),
    Batching.FILL_WITHIN_GOAL,
    growth_reserve=0.01,
    victims=LastArrived(),
    is_preempting_eagerly=True,
    preemption=Preemption.RECOMPUTE,
    reserves_more_again=False,
)

_ALL = (
    _DEFAULT,
    _ECOSERVE,
    # CacheOPT: a bound that holds with a set confidence, prompts embedded where answers have room.
    Policy(
        "cacheopt",
        DeadlineThenOccupancy(),
        ExactAllocation(),
        bound="hoeffding",
        least_share=0.25,
        growth_reserve=0.01,
        victims=LoosestGoal(),
        is_preempting_eagerly=True,
        sharing=Sharing.EMBED,
    ),
    # vLLM as of its paper: arrival order, blocks one by one, prompts before answers.
    Policy(
        "fcfs",
        ArrivalOrder(),
        BlockAllocation(),
        Batching.PROMPTS_FIRST,
        growth_reserve=0.01,
        victims=LastArrived(),
        is_preempting_eagerly=True,
        preemption=Preemption.RECOMPUTE,
        reserves_more_again=False,
    ),
    # Orca reserves the longest answer that the caller allows, so nobody ever makes room.
    Policy(
        "orca",
        ArrivalOrder(),
        ExactAllocation(),
        Batching.WHOLE_MIXED,
        predictor="max-tokens",
        growth_reserve=0.0,
        preemption=Preemption.RECOMPUTE,
    ),
    # Sarathi-Serve: as many tokens of prompts beside the answers as the tightest goal allows.
    _SARATHI,
    # vLLM as it is now: the same, with as many tokens as an iteration may hold, whatever the goals.
    replace(_SARATHI, name="vllm", batching=Batching.FILL),
    Policy(
        "tgi",
        ArrivalOrder(),
        ExactAllocation(),
        Batching.WAITING_RATIO,
        predictor="max-tokens",
        growth_reserve=0.0,
        preemption=Preemption.RECOMPUTE,
    ),
    # DistServe: what differs from it as published is told in docs/decisions/papers-as-built.md.
    Policy(
        "distserve",
        ArrivalOrder(),
        BlockAllocation(),
        growth_reserve=0.01,
        victims=LastArrived(),
        preemption=Preemption.FIRST,
        is_disaggregated=True,
    ),
    # FastServe: what differs from it as published is told in decode_worker/turn_taking.py.
    Policy(
        "fastserve",
        ArrivalOrder(),
        BlockAllocation(),
        Batching.FEEDBACK,
        growth_reserve=0.01,
        preemption=Preemption.SWAP,
        is_queued_on_workers=True,
    ),
    # AccelGen: chunks as large as the tightest goal allows, in order of slack; answers that can
    # wait make room for prompts that cannot.
    Policy(
        "accelgen",
        DeadlineThenOccupancy(),
        BlockAllocation(),
        Batching.DYNAMIC,
        ChunkSettings(saturation=DEFAULT_FRACTION),
        growth_reserve=0.01,
        victims=LargestSlack(),
        is_preempting_eagerly=True,
        parked_yields=True,
        urgent_preempts=True,
    ),
    # The default with perfect foresight. Predicted means are below the truth while few answers have
    # ended, so the default has more of them at once than its own 1.2 says; who knows better has to
    # allow it.
    replace(
        _DEFAULT,
        name="oracle",
        predictor="oracle",
        growth_reserve=0.0,
        admission=FuturePeak(overcommit=1.6),
    ),
)
POLICIES: dict[str, Policy] = {policy.name: policy for policy in _ALL}


def policy_named(name: str, deadline_bucket_s: float, kvc_bucket_blocks: int) -> Policy:
    """The policy of that name with these bucket widths. Raises: KeyError for an unknown name."""
    policy = POLICIES[name]
    if isinstance(policy.ordering, DeadlineThenOccupancy):
        of_answer = policy.ordering.is_of_answer
        ordering = DeadlineThenOccupancy(deadline_bucket_s, kvc_bucket_blocks, of_answer)
        return replace(policy, ordering=ordering)
    return policy
