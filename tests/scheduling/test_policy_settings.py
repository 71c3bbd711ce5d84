"""Policies changed by field=value, the same way for every process and for a simulation."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.admission import FuturePeak, WhatIsReserved
from scheduling.batch_time_recovery import Preemption
from scheduling.dynamic_chunk import IterationGoal
from scheduling.length_oracles import NoisyOracle
from scheduling.policies import POLICIES
from scheduling.policy import (
    ArrivalOrder,
    Batching,
    BlockAllocation,
    DeadlineThenOccupancy,
    ExactAllocation,
    Policy,
    Sharing,
)
from scheduling.policy_settings import PolicyInvalid, changed, joined, policy_of
from scheduling.victims import (
    CheapestToRecompute,
    LargestSlack,
    LastArrived,
    LoosestGoal,
    LowestQueue,
)

DEFAULT = POLICIES["default"]
# Of each field, what it may be set to and what it then is.
VALUES: dict[str, list[tuple[str, object]]] = {
    "ordering": [("arrival", ArrivalOrder()), ("deadline", DeadlineThenOccupancy())],
    "allocation": [
        ("exact", ExactAllocation()),
        ("blocks", BlockAllocation()),
        ("blocks:16", BlockAllocation(16)),
    ],
    "batching": [(str(member), member) for member in Batching],
    "predictor": [
        (name, name)
        for name in ("quantiles", "regression", "max-tokens", "oracle", "noisy-oracle:0.3")
    ],
    "bound": [
        ("none", None),
        *((name, name) for name in ("mean", "quantile", "padded", "hoeffding")),
    ],
    "growth_reserve": [("0.0", 0.0), ("0.0625", 0.0625)],
    "least_share": [("0.25", 0.25), ("1.0", 1.0)],
    "is_growing_ahead": [("yes", True), ("no", False)],
    "sharing": [(str(member), member) for member in Sharing],
    "admission": [
        ("reserved", WhatIsReserved()),
        ("peak", FuturePeak()),
        ("peak:1.5", FuturePeak(1.5)),
    ],
    "victims": [
        ("last-arrived", LastArrived()),
        ("cheapest-to-recompute", CheapestToRecompute()),
        ("loosest-goal", LoosestGoal()),
        ("lowest-queue", LowestQueue()),
        ("largest-slack", LargestSlack()),
    ],
    "is_preempting_eagerly": [("yes", True), ("no", False)],
    "preemption": [(str(member), member) for member in Preemption],
    "parked_yields": [("yes", True), ("no", False)],
    "urgent_preempts": [("yes", True), ("no", False)],
    "late_yields": [("yes", True), ("no", False)],
    "is_grouping": [("yes", True), ("no", False)],
    "is_decoupled": [("yes", True), ("no", False)],
    "outgrown_waits_again": [("yes", True), ("no", False)],
    "is_queued_on_workers": [("yes", True), ("no", False)],
    "is_disaggregated": [("yes", True), ("no", False)],
}
# Set by parts, or with another field only.
ELSEWHERE = {"name", "chunks", "reserves_more_again"}
each_value = pytest.mark.parametrize(
    ("field", "text", "value"),
    [(field, text, value) for field, values in VALUES.items() for text, value in values],
)


def is_equal(one: object, other: object) -> bool:
    """`WhatIsReserved` has no state and no equality."""
    return one == other or type(one) is type(other) is WhatIsReserved


def test_every_field_of_a_policy_can_be_set() -> None:
    assert {field.name for field in fields(Policy)} == VALUES.keys() | ELSEWHERE


@each_value
def test_a_field_gets_its_value_and_nothing_else_changes(
    field: str, text: str, value: object
) -> None:
    policy = changed(DEFAULT, [f"{field}={text}"])
    assert is_equal(getattr(policy, field), value)
    assert policy.name == f"default+{field}={text}"
    restored = replace(policy, name="default", **{field: getattr(DEFAULT, field)})
    assert restored == DEFAULT


@given(
    base=st.sampled_from(sorted(POLICIES)),
    chosen=st.lists(
        st.sampled_from([(f, text) for f, values in VALUES.items() for text, _ in values]),
        unique_by=lambda pair: pair[0],
    ),
)
def test_a_changed_policy_is_made_again_from_its_name(
    base: str, chosen: list[tuple[str, str]]
) -> None:
    pairs = [f"{field}={text}" for field, text in chosen]
    if "victims" in dict(chosen):
        pairs.append("reserves_more_again=yes")  # without, only one kind of victim is taken
    if policy_of(base).urgent_preempts or "urgent_preempts" in dict(chosen):
        pairs = [pair for pair in pairs if not pair.startswith("parked_yields")]
        pairs.append("parked_yields=yes")  # without, prompts wait for those that make room
    policy = policy_of(joined(base, pairs))
    again = policy_of(policy.name)
    assert all(
        is_equal(getattr(policy, field.name), getattr(again, field.name))
        for field in fields(Policy)
    )
    assert policy_of(joined(base, pairs[::-1])).name == policy.name, "in whatever order"


def test_a_policy_that_nobody_changes_is_itself() -> None:
    assert policy_of("fcfs") == POLICIES["fcfs"]
    assert changed(DEFAULT, []) is DEFAULT


def test_parts_of_objects_are_set_with_a_dot() -> None:
    pairs = ["chunks.goal=next_token", "chunks.max_tokens=512", "chunks.is_by_slack=off"]
    policy = changed(POLICIES["accelgen"], pairs)
    before = POLICIES["accelgen"].chunks
    goal = IterationGoal.NEXT_TOKEN
    assert policy.chunks == replace(before, goal=goal, is_by_slack=False, max_tokens=512)
    assert changed(policy, ["chunks.max_tokens=none"]).chunks.max_tokens is None
    loosest = changed(DEFAULT, ["victims.tpot_bucket_s=0.2", "victims=loosest-goal"])
    assert loosest.victims == LoosestGoal(0.2)


def test_widths_of_buckets_that_a_router_is_given_hold_where_the_name_does_not_say_others() -> None:
    widths = DeadlineThenOccupancy(9.0, 2)
    assert policy_of("default", widths).ordering == widths
    assert policy_of("fcfs", widths).ordering == ArrivalOrder()
    assert policy_of("fcfs+ordering=deadline", widths).ordering == widths
    other = policy_of("default+ordering.deadline_bucket_s=1", widths)
    assert other.ordering == DeadlineThenOccupancy(1.0, 2)


def test_nobody_else_makes_room_for_ever_where_nobody_comes_back_with_more() -> None:
    with pytest.raises(PolicyInvalid, match="set that as well"):
        changed(DEFAULT, ["reserves_more_again=no"])
    policy = changed(DEFAULT, ["reserves_more_again=no", "victims=last-arrived"])
    assert not policy.reserves_more_again


def test_a_noisy_oracle_is_for_simulations_only() -> None:
    policy = policy_of("default+predictor=noisy-oracle:0.3")
    assert policy.needs_foresight
    assert isinstance(policy.new_predictor(), NoisyOracle)
    assert not policy_of("default+predictor=regression").needs_foresight


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lifo", "policy 'lifo' is unknown; use one of default, ecoserve"),
        ("default+victim=x", "no field 'victim'; the fields are ordering, allocation, batching"),
        ("default+name=x", "no field 'name'"),
        ("default+victims", "'victims' is no field=value; the fields are"),
        ("default+victims=oldest", "use one of last-arrived, cheapest-to-recompute, loosest-goal"),
        ("default+victims=last-arrived:3", "victims cannot be 'last-arrived:3'"),
        ("default+allocation=pages", "use one of exact, blocks[:NUM_TOKENS_AHEAD]"),
        ("default+allocation=blocks:0", "num_tokens_ahead must be at least 1"),
        ("default+allocation=blocks:x", "allocation=blocks cannot be 'x'; use a whole number"),
        ("default+admission=peak:0.5", "overcommit must be at least 1"),
        ("default+admission=peak:nan", "use a number"),
        ("default+batching=fast", "batching cannot be 'fast'; use one of fill, "),
        ("default+is_grouping=maybe", "use one of yes, true, on, no, false, off"),
        ("default+growth_reserve=0.9", "from 0 to 0.5"),
        ("default+least_share=0.0", "above 0, at most 1"),
        ("default+growth_reserve=-1", "from 0 to 0.5"),
        (
            "default+predictor=crystal",
            "use one of quantiles, regression, max-tokens, oracle, noisy",
        ),
        ("default+predictor=noisy-oracle:2", "relative_error must be in"),
        ("default+bound=tight", "use one of none, mean, quantile, padded, hoeffding"),
        ("default+chunks=big", "set by its parts: chunks.goal"),
        ("default+chunks.size=1", "chunks of default has no part 'size'; it has goal, gamma_s"),
        ("fcfs+ordering.kvc_bucket_blocks=3", "no part 'kvc_bucket_blocks'; it has none"),
        ("default+ordering.kvc_bucket_blocks=0", "buckets must have a width"),
        ("accelgen+chunks.gamma_s=-1", "gamma_s >= 0"),
        ("accelgen+parked_yields=no", "unless parked_yields=yes; set that as well"),
        ("default+sharing=none+sharing=embed", "sharing is given twice"),
        ("default+victims.tpot_bucket_s=1", "victims of default has no part"),
    ],
)
def test_what_cannot_be_is_told_with_what_there_is(name: str, words: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        policy_of(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
