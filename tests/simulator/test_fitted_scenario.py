"""What a scenario is told of a real cluster: times of messages, and what callers allowed."""

import pytest

from scheduling.policies import POLICIES
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.model_timing import LEDGER_LATENCY_S, LINK_LATENCY_S
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.traces.workload import TraceRequest

CPU = load_hardware("cpu")
MIXED = ClusterSpec(num_mixed=1)


def test_a_first_token_waits_for_the_ledger_and_for_both_ways() -> None:
    requests = [TraceRequest(0.0, 100, 5)]
    ttft_s = []
    for more_s in (0.0, 0.1):
        scene = scene_of(
            requests,
            CPU,
            link_latency_s=LINK_LATENCY_S + more_s,
            ledger_latency_s=LEDGER_LATENCY_S + 2 * more_s,
        )
        _, outcomes = simulated(scene, POLICIES["default"], MIXED)
        assert outcomes[0].ttft_s is not None
        ttft_s.append(outcomes[0].ttft_s)
    assert ttft_s[1] - ttft_s[0] == pytest.approx(0.4)


@pytest.mark.parametrize(("are_lengths_allowed", "is_together"), [(True, True), (False, False)])
def test_callers_may_allow_no_more_than_the_answer_takes(
    are_lengths_allowed: bool, is_together: bool
) -> None:
    # Room for both answers as they are, and not for one more of 1024 tokens.
    requests = [TraceRequest(0.0, 32, 64), TraceRequest(0.0, 32, 64)]
    scene = scene_of(requests, with_kv_tokens(CPU, 1200), are_lengths_allowed=are_lengths_allowed)
    _, outcomes = simulated(scene, POLICIES["orca"], MIXED)
    second_at_s = outcomes[1].first_token_at_s
    assert second_at_s is not None
    assert (second_at_s < outcomes[0].ended_at_s) is is_together
