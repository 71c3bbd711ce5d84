"""The policy that knows how long answers will be, against the default, which has to guess."""

import random

import pytest

from scheduling.policies import POLICIES
from scheduling.policy_settings import policy_of
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.slo import GapRule, RequestSlo
from simulator.traces.workload import TraceRequest

SMALL = with_kv_tokens(load_hardware("a100"), 6000)
# Twenty times what a token takes: answers may wait in host memory for most of their time.
LOOSE = RequestSlo(ttft_s=3.0, gaps=((GapRule.MEAN, 0.5),))


def num_in_time(policy: str, seed: int) -> int:
    """Of 60 requests that come before the first answers end, where KV for 7 of them is."""
    rng = random.Random(seed)
    requests = [TraceRequest(number * 0.4, 300, rng.randint(200, 800)) for number in range(60)]
    scene = scene_of(requests, SMALL, slos=(LOOSE,) * len(requests), swap_bytes=60 << 30)
    _, outcomes = simulated(scene, policy_of(policy), ClusterSpec(num_mixed=1))
    return sum(outcome.meets_slo for outcome in outcomes.values())


@pytest.mark.slow
def test_foresight_costs_no_first_tokens_where_answers_have_time() -> None:
    """Whoever guesses begins more answers than would fit, since early guesses are short."""
    default, oracle = num_in_time("default", 3), num_in_time("oracle", 3)
    cautious = num_in_time("oracle+admission.overcommit=1.2", 3)
    assert oracle >= 0.95 * default
    assert cautious < 0.7 * oracle


def test_the_oracle_is_the_default_but_for_what_it_knows() -> None:
    default, oracle = POLICIES["default"], POLICIES["oracle"]
    differing = {
        name
        for name in type(default).__dataclass_fields__
        if getattr(default, name) != getattr(oracle, name)
    }
    assert differing == {"name", "predictor", "growth_reserve", "admission"}
