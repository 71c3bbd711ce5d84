import random
from dataclasses import fields

import pytest

from benchmarks.scheduling.ablation_report import FIGURES
from benchmarks.scheduling.variants import BASES, VARIANTS, Variant, subjects_of
from scheduling.policies import POLICIES
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.slo import GapRule, RequestSlo
from simulator.traces.workload import TraceRequest


def named(variant: Variant) -> str:
    return variant.subject.name


def test_every_policy_of_the_papers_and_the_default_has_ablations() -> None:
    papers = {"ecoserve", "ecoserve told lengths", "cacheopt", "accelgen"}
    assert set(BASES) == {"default", *papers}


def test_names_are_told_apart_and_say_what_is_gone() -> None:
    names = [named(variant) for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert not set(names) & POLICIES.keys()
    assert all(variant.subject.name.startswith(f"{variant.base} - ") for variant in VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_something_is_gone_and_nearly_all_is_left(variant: Variant) -> None:
    (base,) = (s.policy for s in subjects_of([variant.base]) if s.name == variant.base)
    policy = variant.subject.policy
    names = [field.name for field in fields(base) if field.name != "name"]
    changed = [name for name in names if getattr(policy, name) != getattr(base, name)]
    num_gone = len(changed) + (not variant.subject.prefix_caching)
    # What fcfs does with memory is several fields.
    assert 1 <= num_gone <= (7 if "as fcfs" in variant.without else 2)


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_without_its_mechanism_a_policy_still_serves_everybody(variant: Variant) -> None:
    rng = random.Random(5)
    requests = [
        TraceRequest(0.03 * number, rng.randint(8, 900), rng.choice([rng.randint(1, 60), 200]))
        for number in range(25)
    ]
    goals = tuple(
        RequestSlo(ttft_s=rng.choice([0.5, 4.0]), gaps=((GapRule.MEAN, 0.1),)) for _ in requests
    )
    scene = scene_of(
        requests, with_kv_tokens(load_hardware("a100"), 4000), slos=goals, swap_bytes=2**30
    )
    _, outcomes = simulated(scene, variant.subject.policy, ClusterSpec(num_mixed=1))
    assert len(outcomes) == len(requests)
    assert all(outcome.jct_s is not None for outcome in outcomes.values())


def test_a_policy_is_measured_before_itself_without_something() -> None:
    names = [subject.name for subject in subjects_of(["cacheopt", "default"])]
    assert names[0] == "cacheopt"
    first_of_default = names.index("default")
    assert all(name.startswith("cacheopt") for name in names[:first_of_default])
    assert all(name.startswith("default") for name in names[first_of_default:])


def test_what_is_expected_is_of_figures_that_the_report_knows() -> None:
    assert {expected.figure for v in VARIANTS for expected in v.expected} <= FIGURES.keys()


# PAPERS 1.4.9 names four directions of EcoServe's ablations.
def test_all_published_directions_of_ecoserve_are_looked_at() -> None:
    told = {
        (variant.without.partition(":")[0], expected.figure)
        for variant in VARIANTS
        for expected in variant.expected
        if variant.base == "ecoserve"
    }
    assert told >= {
        ("decoupling", "forward size"),
        ("groups of equal length", "cpu time"),
        ("pipelining", "running"),
        ("ordering", "attainment"),
        ("ordering", "wait with KV"),
    }
