"""The core that a worker's process is built around decides by the policy that its settings name."""

from dataclasses import replace
from pathlib import Path

import pytest

from decode_worker.answers_testing import BLOCK_SIZE, NOW, Answer, begin, finish, who_makes_room
from decode_worker.core import DecodeCore
from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.serve import build_decode, decode_settings_of
from decode_worker.turn_taking import new_core
from engine.kv_pool import KvLayout
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import Transport
from runtime.errors import StartupError
from runtime.worker_config import DecodeConfig
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import Preempted, SwappedOut
from scheduling.policies import POLICIES
from scheduling.policy_settings import policy_of
from simulator.hardware.description import load_hardware
from simulator.simulation import worker_spec
from simulator.simulation_testing import scene_of
from worker.assembly import RoleParts, Workplace

EARLY = Answer("early", num_prompt=3, num_blocks=1, arrived_at_s=1.0)
EXPORT = KvExport("loopback", "a", 16, 64, WorkerId("decode-0"), Incarnation(1), "h")
LATE = Answer("late", num_prompt=3, num_blocks=4, arrived_at_s=2.0)


def built(policy: str, **settings: object) -> DecodeCore:
    """Its core, on 16 blocks of 4 tokens."""
    core = parts_of(policy, 16, **settings).core
    assert isinstance(core, DecodeCore)
    return core


def parts_of(policy: str, num_blocks: int, **settings: object) -> RoleParts:
    """What its process is made of, closed already."""
    config = DecodeConfig.model_validate(
        {
            "model": Path("unread"),
            "role": "mixed",
            "policy": policy,
            "block_size": BLOCK_SIZE,
            "swap_mib": 1,
            "prefix_caching": False,
            **settings,
        }
    )
    layout = KvLayout(1, 1, 8, BLOCK_SIZE, "float32")
    transports: dict[str, Transport] = {"loopback": LoopbackTransport()}
    life = Incarnation(1)
    place = Workplace(config, life, layout, num_blocks, transports, post=lambda event: None)
    parts = build_decode(place)
    parts.close(1.0)
    return parts


def test_a_policy_that_nobody_knows_ends_the_start() -> None:
    with pytest.raises(StartupError, match="'lifo' is unknown; use one of default, ecoserve"):
        built("lifo")


# DistServe has nobody make room while others go on; fcfs has who came last, at once.
@pytest.mark.parametrize(
    ("policy", "who"), [("distserve", None), ("fcfs", Preempted(LATE.task_id))]
)
def test_the_policy_says_who_makes_room_and_when(policy: str, who: Preempted | None) -> None:
    core = built(policy)
    for each in (EARLY, LATE):
        begin(core, each, in_place=False)
    assert who_makes_room(core, denied={"early"}) == who


@pytest.mark.parametrize(
    ("chosen", "becomes"), [("auto", Preempted), ("first", SwappedOut), ("recompute", Preempted)]
)
def test_what_becomes_of_kv_is_the_policys_word_unless_the_settings_say_otherwise(
    chosen: str, becomes: type[Preempted | SwappedOut]
) -> None:
    core = built("fcfs", preemption=chosen)
    for each in (EARLY, LATE):
        begin(core, each, in_place=False)
    assert type(who_makes_room(core, denied={"early"})) is becomes


@pytest.mark.parametrize("role", ["decode", "mixed"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_keeps_the_reserve_that_the_simulated_one_keeps(policy: str, role: str) -> None:
    simulated = worker_spec(role, scene_of([], load_hardware("a100")), POLICIES[policy])
    simulated = replace(simulated, num_blocks=1600)
    hello = simulated.hello(WorkerId("decode-0"), Incarnation(1))
    assert parts_of(policy, 1600, role=role).num_growth_blocks == hello.num_growth_blocks


def test_a_reserve_that_is_set_is_kept_whatever_the_policy_has() -> None:
    for policy in ("default", "fcfs", "orca"):
        assert parts_of(policy, 1600, growth_reserve=0.25).num_growth_blocks == 400
        assert parts_of(policy, 1600, growth_reserve=0.0).num_growth_blocks == 0


@pytest.mark.parametrize(("policy", "num_beside"), [("default", 1), ("fcfs", 0)])
def test_the_policy_says_whether_answers_go_on_beside_a_prompt(
    policy: str, num_beside: int
) -> None:
    core = built(policy)
    begin(core, LATE, in_place=False)
    _, plan = core.plan(NOW)
    assert plan is not None
    finish(core, plan)
    begin(core, Answer("prompt", num_prompt=20, num_blocks=6), in_place=True)
    _, plan = core.plan(NOW)
    assert plan is not None
    assert plan.num_tokens == 20 + num_beside


@pytest.mark.parametrize(
    ("settings", "plans_ahead"),
    [
        ({}, False),
        ({"plan_ahead": "yes"}, True),
        ({"plan_ahead": "yes", "role": "decode"}, True),
        ({"plan_ahead": "yes", "policy": "fastserve"}, False),
        ({"device": "cuda"}, True),
        ({"device": "cuda", "plan_ahead": "no"}, False),
        ({"device": "cuda", "tensor_parallel_size": 2}, False),
        ({"plan_ahead": "yes", "tensor_parallel_size": 2}, False),
    ],
)
def test_passes_are_planned_ahead_on_a_gpu_of_one_rank_or_where_asked_for(
    settings: dict[str, object], plans_ahead: bool
) -> None:
    given = {"model": Path("unread"), "role": "mixed", "policy": "default", **settings}
    config = DecodeConfig.model_validate(given)
    policy = policy_of(config.policy_name)
    core = new_core(decode_settings_of(config, policy, 16, 64), EXPORT)
    assert isinstance(core, PlanningAheadCore) == plans_ahead


def test_parts_whose_passes_are_planned_ahead_say_so() -> None:
    assert parts_of("default", 16).ahead is None
    parts = parts_of("default", 16, plan_ahead="yes")
    core: object = parts.core
    assert parts.ahead is core
    assert parts_of("fastserve", 16, plan_ahead="yes").ahead is None
