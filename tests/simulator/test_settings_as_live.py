"""Simulated routers and workers decide by the same numbers as those that are started for real.

Every field of what they decide by is compared, one that is added later as well; what may differ is
listed with its reason.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from decode_worker.serve import build_decode, decode_settings_of
from engine.bundled import bundled_model_path
from prefill_worker.serve import build_prefill, prefill_settings_of
from router.process_setup import core_setup_of
from runtime.config import RouterConfig
from runtime.worker_config import DecodeConfig, PrefillConfig
from scheduling.admission import WhatIsReserved
from scheduling.backlog import BacklogLimit
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.ids import Incarnation, WorkerId
from scheduling.policies import POLICIES
from scheduling.policy_settings import policy_of
from simulator.hardware.description import load_hardware
from simulator.simulation import Scenario, router_settings, worker_spec
from simulator.simulation_testing import scene_of
from simulator.worker_spec import WorkerSpec
from worker.assembly import assemble

SWAP_MIB = 1024
LIFE = Incarnation(1)
# Changed in ways that reach router and workers.
CHANGED = (
    "default+victims=last-arrived+growth_reserve=0.125+preemption=swap",
    "fcfs+ordering=deadline+batching=dynamic+chunks.goal=next_token+is_growing_ahead=no",
)
NAMES = (*(name for name, policy in POLICIES.items() if not policy.needs_foresight), *CHANGED)
ROUTER_MAY_DIFFER = {
    "max_prompt_queue": "a simulation refuses nobody, so that all requests are in its figures",
    "max_retries_per_task": "nothing fails in a simulation, and nobody is given up",
    "max_sequence_tokens": "no message is too large where none is sent",
    "task_tag": "keeps the lives of routers apart; a simulation has one",
}
DECODE_MAY_DIFFER = {
    "is_learning": "for `tandem admin workers`; where a policy decides by it, both learn",
    "max_untold_tokens": "engines that only count tell many tokens as one, with the same outcome",
}
PREFILL_MAY_DIFFER = {
    "is_learning": "for `tandem admin workers`",
    "are_cores_shared": "the hardware that is described has links of its own",
    "max_push_s": "no simulated push times out",
}
HELLO_MAY_DIFFER = {
    "compatibility": "simulated workers all fit one another",
    "model_fingerprint": "no model is loaded in a simulation",
    "export": "KV does not travel in a simulation, but takes as long",
    "max_message_bytes": "no message is sent in a simulation",
    "traits": "what `compatibility` is made of, for routers that say why two do not fit",
}
by_policy = pytest.mark.parametrize("name", NAMES)
by_role = pytest.mark.parametrize("role", ["decode", "mixed"])


def scene() -> Scenario:
    hardware = load_hardware("h200")
    return scene_of([], hardware, swap_bytes=SWAP_MIB * 2**20, prefix_caching=True)


def flags(name: str) -> dict[str, object]:
    """The settings that name the policy, of any process."""
    base, *changes = name.split("+")
    return {"model": Path("unread"), "policy": base, "policy_set": changes}


def limits(spec: WorkerSpec) -> dict[str, object]:
    """What a worker of that size is started with: the machine's, not the policy's."""
    return {
        "block_size": spec.block_size,
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": spec.max_num_batched_tokens,
    }


def decode_config(name: str, spec: WorkerSpec) -> DecodeConfig:
    copies = {"swap_mib": SWAP_MIB, "swap_bytes_per_s": int(spec.swap_bytes_per_s)}
    return DecodeConfig.model_validate({**flags(name), **limits(spec), **copies, "role": spec.role})


def plain(value: Any) -> Any:
    """What two of a kind are compared by: fields, and no model of passes, which is learnt."""
    if isinstance(value, OnlineBatchTime):
        return "learnt"
    if not is_dataclass(value):
        # A rule without state is its class.
        return type(value) if isinstance(value, WhatIsReserved) else value
    # What it is made with; the rest it works out by itself.
    return type(value), {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}


def differing(live: Any, simulated: Any) -> dict[str, tuple[Any, Any]]:
    """Every field that is not the same, with both values."""
    assert type(live) is type(simulated)
    both = {f.name: (getattr(live, f.name), getattr(simulated, f.name)) for f in fields(live)}
    return {name: (a, b) for name, (a, b) in both.items() if plain(a) != plain(b)}


def assert_alike(live: Any, simulated: Any, may_differ: dict[str, str]) -> None:
    there = {field.name for field in fields(live)}
    assert may_differ.keys() <= there, "an excuse for a field that is gone"
    found = differing(live, simulated)
    assert not found.keys() - may_differ.keys(), found


@by_policy
def test_a_router_decides_by_what_a_simulated_one_decides_by(name: str) -> None:
    setup = core_setup_of(RouterConfig.model_validate(flags(name)), LIFE, vocab_size=1000)
    assert_alike(setup.settings, router_settings(scene()), ROUTER_MAY_DIFFER)
    assert_alike(setup.new_policy(), policy_of(name), {})


@by_policy
@by_role
def test_a_worker_decides_by_what_a_simulated_one_decides_by(name: str, role: str) -> None:
    spec = worker_spec(role, scene(), policy_of(name))
    config = decode_config(name, spec)
    live = decode_settings_of(config, policy_of(name), spec.num_blocks, spec.block_bytes)
    # The rate of copies is a whole number of bytes for a process.
    assert live.swap_bytes_per_s == int(spec.swap_bytes_per_s)
    simulated = spec.decode_settings
    rate = {"swap_bytes_per_s": "rounded to whole bytes"}
    assert_alike(live, simulated, DECODE_MAY_DIFFER | rate)


def test_a_prefill_worker_decides_by_what_a_simulated_one_decides_by() -> None:
    spec = worker_spec("prefill", scene(), POLICIES["default"])
    config = PrefillConfig.model_validate({**flags("default"), **limits(spec)})
    live = prefill_settings_of(config, spec.num_blocks)
    assert_alike(live, spec.prefill_settings, PREFILL_MAY_DIFFER)


@pytest.mark.parametrize("name", ["default", "fastserve", CHANGED[0]])
@pytest.mark.parametrize("role", ["prefill", "mixed"])
def test_a_worker_says_of_itself_what_a_simulated_one_says(name: str, role: str) -> None:
    small = WorkerSpec(role, 64, 16, 8, 512)
    start = {"model": bundled_model_path(), "worker_id": "w", "num_blocks": 64}
    given = {**flags(name), **limits(small), **start, "transports": ("tcp",)}
    if role == "prefill":
        worker = assemble(PrefillConfig.model_validate(given), LIFE, build_prefill)
    else:
        config = DecodeConfig.model_validate({**given, "role": role, "swap_mib": 1})
        worker = assemble(config, LIFE, build_decode)
    export = worker.parts.export
    block_bytes = export.block_bytes if export is not None else 1
    num_swap_blocks = 2**20 // block_bytes if role == "mixed" else 0
    worker.parts.close(1.0)
    policy = policy_of(name)
    simulated = replace(
        small,
        num_swap_blocks=num_swap_blocks,
        growth_reserve=policy.growth_reserve,
        preemption=policy.preemption,
        parked_yields=policy.parked_yields,
        batching=policy.batching_rule(small.max_num_batched_tokens, small.max_num_seqs),
        policy=policy.name,
    )
    assert_alike(worker.hello, simulated.hello(WorkerId("w"), LIFE), HELLO_MAY_DIFFER)


def test_prompts_lie_in_front_of_both_for_two_iterations_of_the_worker() -> None:
    spec = worker_spec("mixed", scene(), POLICIES["default"])
    hello = spec.hello(WorkerId("mixed-0"), LIFE)
    config = RouterConfig.model_validate(flags("default"))
    setup = core_setup_of(config, LIFE, vocab_size=1000)
    limit = BacklogLimit(setup.settings.max_backlog_tokens)
    most = limit.tokens(hello.role, hello.max_num_batched_tokens)
    assert most == 2 * load_hardware("h200").limits.max_num_batched_tokens
