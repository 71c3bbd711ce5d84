"""Simulated prefill workers decide by the live rule when KV leaves."""

from scheduling.policies import POLICIES
from scheduling.push_pacing import KvOverlap
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import Hardware, load_hardware
from simulator.simulation_testing import scene_of, simulated
from simulator.traces.workload import TraceRequest

# Five full passes; answers of two tokens, so that they end when decode has begun.
NUM_PROMPT, NUM_OUTPUT = 5 * 8192, 2
# The first of them make passes and path known.
NUM_REQUESTS, NUM_UNKNOWN = 16, 8


def between_nodes() -> Hardware:
    hardware = load_hardware("h200")
    return hardware.model_copy(update={"transfer": hardware.transfer_between_nodes})


def ends_s(overlap: KvOverlap) -> list[float]:
    """Seconds that prompts take which come one at a time, once all is known."""
    requests = [TraceRequest(10.0 * n, NUM_PROMPT, NUM_OUTPUT) for n in range(NUM_REQUESTS)]
    scene = scene_of(requests, between_nodes(), kv_overlap=overlap)
    _, outcome_by_number = simulated(scene, POLICIES["default"], ClusterSpec(1, 1, 0))
    outcomes = [outcome_by_number[number] for number in range(NUM_UNKNOWN, NUM_REQUESTS)]
    return [outcome.jct_s for outcome in outcomes]


def test_between_nodes_the_rule_is_sooner_than_either_fixed_way() -> None:
    auto_s, chunk_s, whole_s = (
        ends_s(way) for way in (KvOverlap.AUTO, KvOverlap.CHUNK, KvOverlap.WHOLE)
    )
    assert all(chunk < whole for chunk, whole in zip(chunk_s, whole_s, strict=True))
    assert all(auto < chunk for auto, chunk in zip(auto_s, chunk_s, strict=True))
