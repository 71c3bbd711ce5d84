"""A worker asks the rules of the policy: who makes room and when, and what a pass may hold."""

from dataclasses import replace

import pytest

from decode_worker.answers_testing import (
    BLOCK_SIZE,
    NOW,
    Answer,
    begin,
    finish,
    who_makes_room,
)
from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import Preempted
from scheduling.policies import POLICIES
from scheduling.victims import (
    CheapestToRecompute,
    LargestSlack,
    LastArrived,
    LoosestGoal,
    VictimRule,
)

EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("mixed-0"), Incarnation(1), "h")
# With its second token it needs another block, and is denied one.
STUCK = Answer("stuck", num_prompt=3, num_blocks=1)
FINE = Answer("fine", num_prompt=3, num_blocks=4)
# The same on more, and on fewer blocks.
LARGE_STUCK = replace(STUCK, num_prompt=7, num_blocks=2)
SMALL_FINE = replace(FINE, num_prompt=1, num_blocks=1)


def new_core(rule: VictimRule, *, is_eager: bool) -> DecodeCore:
    settings = DecodeSettings(
        16, BLOCK_SIZE, 4, growth_blocks=1, prefix_caching=False, victims=rule, is_eager=is_eager
    )
    return DecodeCore(settings, EXPORT)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("is_eager", "makes_room"), [(True, True), (False, False)])
def test_one_makes_room_while_others_go_on_only_where_the_policy_is_eager(
    is_eager: bool, makes_room: bool, in_place: bool
) -> None:
    core = new_core(CheapestToRecompute(), is_eager=is_eager)
    begin(core, STUCK, in_place=in_place)
    begin(core, FINE, in_place=in_place)
    assert (who_makes_room(core, denied={"stuck"}) is not None) == makes_room


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("rule", "stuck", "fine", "victim"),
    [
        (LastArrived(), replace(STUCK, arrived_at_s=1.0), replace(FINE, arrived_at_s=2.0), FINE),
        (LastArrived(), replace(STUCK, arrived_at_s=2.0), replace(FINE, arrived_at_s=1.0), STUCK),
        (CheapestToRecompute(), STUCK, replace(FINE, num_prompt=2), FINE),
        (CheapestToRecompute(), STUCK, replace(FINE, num_prompt=4), STUCK),
        (LoosestGoal(), replace(STUCK, tpot_s=0.1), replace(FINE, tpot_s=0.5), FINE),
        (LoosestGoal(), replace(STUCK, tpot_s=0.5), replace(FINE, tpot_s=0.1), STUCK),
        (LoosestGoal(), STUCK, replace(FINE, max_tokens=60), FINE),
        (LoosestGoal(), replace(STUCK, max_tokens=60), FINE, STUCK),
        (LoosestGoal(), LARGE_STUCK, SMALL_FINE, FINE),
        (LoosestGoal(), STUCK, FINE, STUCK),
        (LargestSlack(), replace(STUCK, tpot_s=0.1), replace(FINE, tpot_s=0.5), FINE),
        (LargestSlack(), replace(STUCK, tpot_s=0.5), replace(FINE, tpot_s=0.1), STUCK),
    ],
)
def test_an_eager_policy_takes_its_victim_among_all_that_run_by_its_own_rule(
    rule: VictimRule, stuck: Answer, fine: Answer, victim: Answer, in_place: bool
) -> None:
    core = new_core(rule, is_eager=True)
    begin(core, stuck, in_place=in_place)
    begin(core, fine, in_place=in_place)
    assert who_makes_room(core, denied={"stuck"}) == Preempted(victim.task_id)


# By what the router predicts, not by what the callers allow; the other way round that is FINE.
LONG_STUCK = replace(STUCK, max_tokens=200, num_predicted_tokens=150)
SHORT_FINE = replace(FINE, max_tokens=400, num_predicted_tokens=8)
LONG_FINE = replace(FINE, max_tokens=160, num_predicted_tokens=80)


# PAPERS 2.4.4, through the core: loosest goal, then most to come by prediction, then fewest blocks.
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("stuck", "fine", "victim"),
    [
        (LONG_STUCK, SHORT_FINE, STUCK),
        (replace(LONG_STUCK, num_predicted_tokens=8), LONG_FINE, FINE),
        (replace(LONG_STUCK, tpot_s=0.1), replace(SHORT_FINE, tpot_s=0.5), FINE),
        # Both outlive their prediction by now: nearly equal, so the one on fewer blocks.
        (replace(LONG_STUCK, num_predicted_tokens=1), replace(FINE, num_predicted_tokens=1), STUCK),
        (replace(LONG_STUCK, num_predicted_tokens=20), SHORT_FINE, STUCK),
        # Whose router says nothing may become as long as it is allowed to.
        (replace(LONG_STUCK, num_predicted_tokens=0), LONG_FINE, STUCK),
    ],
)
def test_cacheopt_takes_the_loosest_goal_then_the_longest_to_go_then_the_smallest(
    stuck: Answer, fine: Answer, victim: Answer, in_place: bool
) -> None:
    core = new_core(POLICIES["cacheopt"].victims, is_eager=True)
    begin(core, stuck, in_place=in_place)
    begin(core, fine, in_place=in_place)
    assert who_makes_room(core, denied={"stuck"}) == Preempted(victim.task_id)


@pytest.mark.parametrize(
    ("rule", "victim"), [(LastArrived(), "late/0"), (CheapestToRecompute(), "short/0")]
)
def test_where_nobody_can_go_on_the_policys_rule_says_who_makes_room(
    rule: VictimRule, victim: str
) -> None:
    core = new_core(rule, is_eager=False)
    begin(core, Answer("late", num_prompt=7, num_blocks=2, arrived_at_s=2.0), in_place=False)
    begin(core, Answer("short", num_prompt=3, num_blocks=1, arrived_at_s=1.0), in_place=False)
    made_room = who_makes_room(core, denied={"late", "short"})
    assert made_room is not None
    assert made_room.task_id == victim


def tokens_beside_an_answer(policy: str, pass_s: float) -> int:
    """What a prompt of 400 gets of a pass, once passes of an answer alone have taken so long."""
    rule = POLICIES[policy].batching_rule(512, 4)
    settings = DecodeSettings(512, BLOCK_SIZE, 4, prefix_caching=False, batching=rule)
    core, now = DecodeCore(settings, EXPORT), NOW
    begin(core, Answer("answer", 8, num_blocks=32, max_tokens=100, tpot_s=0.1), in_place=True)
    for _ in range(20):
        _, plan = core.plan(now)
        assert plan is not None
        now += pass_s
        finish(core, plan)
    begin(core, Answer("prompt", 400, num_blocks=105), in_place=True)
    _, plan = core.plan(now)
    assert plan is not None
    assert plan.chunks[0].num_tokens == 1, "the answer goes on"
    return plan.num_tokens - 1


@pytest.mark.parametrize("policy", ["default", "accelgen", "sarathi"])
def test_a_worker_whose_passes_take_long_gives_prompts_less_of_each(policy: str) -> None:
    """What it has learnt of its passes says how much fits before the answer's next token."""
    assert tokens_beside_an_answer(policy, pass_s=0.008) == 400
    assert 0 < tokens_beside_an_answer(policy, pass_s=0.08) < 250
