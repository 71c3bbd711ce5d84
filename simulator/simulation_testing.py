"""For tests: whole simulations, and what became of each of their requests."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from scheduling.policy import Policy
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import Hardware, load_hardware
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome
from simulator.metrics.run_record import RunRecord
from simulator.simulation import EVENTS_AT_ONCE, Scenario, Simulation
from simulator.slo import NO_SLO
from simulator.traces.workload import TraceRequest, Workload

# Of one run: a hundred times what the tests here take. At a standstill they never end.
MAX_EVENTS = 1_000_000


def scene_of(requests: Sequence[TraceRequest], hardware: Hardware, **changes: Any) -> Scenario:
    """Nobody has a goal, and no answer more than 1024 tokens; `changes` of `Scenario` beside."""
    workload = Workload("test", tuple(requests))
    plain = Scenario(workload, hardware, (NO_SLO,) * len(requests), max_tokens=1024)
    return replace(plain, **changes)


def with_kv_tokens(hardware: Hardware, num_tokens: int) -> Hardware:
    """The same machine, whose KV memory holds so many tokens."""
    kv = hardware.kv.model_copy(update={"capacity_tokens": num_tokens})
    return hardware.model_copy(update={"kv": kv})


def simulated(
    scene: Scenario, policy: Policy, cluster: ClusterSpec, max_events: int = MAX_EVENTS
) -> tuple[RunRecord, dict[int, RequestOutcome]]:
    """The record, and every request's outcome by its number.

    Raises: AssertionError where a request ended twice, or the run goes on after so many events.
    """
    outcome_by_number: dict[int, RequestOutcome] = {}
    num_looks = count(1)

    def goes_on(now: float) -> bool:
        if next(num_looks) * EVENTS_AT_ONCE > max_events:
            numbers = range(len(scene.workload.requests))
            left = [number for number in numbers if number not in outcome_by_number]
            raise AssertionError(
                f"{policy.name} on {cluster.text} is still busy after {max_events} events, at "
                f"{now:.1f} s; not ended: {len(left)} of {len(numbers)} requests, {left[:8]}"
            )
        return True

    def keep(outcome: RequestOutcome) -> None:
        assert outcome.number not in outcome_by_number, "ended twice"
        outcome_by_number[outcome.number] = outcome

    record = Simulation(scene, policy, cluster, RunRecorder(on_outcome=keep)).run(goes_on)
    return record, outcome_by_number


def crowded_options(folder: Path) -> tuple[str, ...]:
    """Options of both commands: on so little memory prompts begin inside running answers.

    Trace and hardware are files that are written to `folder`.
    """
    rng, trace, hardware = random.Random(11), folder / "crowd.csv", folder / "small.json"
    rows = [
        f"{0.03 * number},{rng.randint(8, 900)},{rng.choice([20, 40, 60, 400])}"
        for number in range(150)
    ]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    small = with_kv_tokens(load_hardware("a100"), 12_000)
    hardware.write_text(small.model_dump_json())
    return ("--policy", "ecoserve", "--trace", str(trace), "--hardware", str(hardware))
