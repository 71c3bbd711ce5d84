"""Measures one cell: the highest rate that serves, and what happens at a rate common to all."""

import time
from collections.abc import Mapping
from typing import Any

from runtime.clock import Clock
from scheduling.policy import Policy
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Goodput, search_goodput
from simulator.load import Load
from simulator.metrics.summary import RunResult, rounded, summary
from simulator.rate_search import RateSearch
from simulator.runs import Runner

# Of the rate that the reference serves: where it begins to fail.
COMMON_FACTOR = 1.1
_KEPT = (
    "offered_rps",
    "throughput_rps",
    "goodput_rps",
    "slo_attainment",
    "ttft_attainment",
    "token_attainment",
    "jct_attainment",
    "preemptions",
    "swaps",
    "kvc_allocated_share",
    "kvc_written_share",
    "cached_prompt_share",
    "failed",
    "unfinished",
    # Seconds of a finished request, by phase.
    "phases_s",
    "length_prediction",
)
_KEPT_OF_ROLES = ("busy_share", "mean_running", "mean_waiting", "iterations")
_DISTRIBUTIONS = ("ttft_ms", "tbt_ms", "tpot_ms", "jct_s")


# Every policy gets so many workers: the least that leave prefill and decode apart a choice.
NUM_WORKERS = 3


class CpuClock:
    """Implements `Clock`: what this process has computed, whoever else is at work."""

    def now(self) -> float:
        return time.process_time()


def clusters_for(policy: Policy) -> tuple[ClusterSpec, ...]:
    """Where prefill and decode are apart, every ratio; the best counts."""
    if not policy.is_disaggregated:
        return (ClusterSpec(num_mixed=NUM_WORKERS),)
    return tuple(
        ClusterSpec(num_prefill=number, num_decode=NUM_WORKERS - number)
        for number in range(1, NUM_WORKERS)
    )


def goodput_of(
    load: Load, clock: Clock, policy: Policy, search: RateSearch
) -> Mapping[str, Any] | None:
    """The best cluster's highest rate; None where no rate serves."""
    found = []
    for cluster in clusters_for(policy):
        one = search_goodput(Runner(load, clock), policy, cluster, search)
        if one.best is not None:
            found.append((one.best, one))
    if not found:
        return None
    return _as_json(*max(found, key=lambda each: _per_gpu(each[0])))


def common_of(load: Load, clock: Clock, policy: Policy, scale: float) -> dict[str, Any]:
    """What happens at that rate, on the cluster on which most meet their goals."""
    runner = Runner(load, clock)
    runs = [runner.run(policy, one, scale) for one in clusters_for(policy)]
    result = max(runs, key=lambda run: run.slo_attainment)
    told = summary(result)
    kept = {name: told[name] for name in ("cluster", *_KEPT)}
    # Of the whole simulation, one request's part: the only figure that depends on the machine.
    took = runner.wall_times[runs.index(result)]
    return {
        **kept,
        **{name: told[name] for name in _DISTRIBUTIONS},
        "roles": _roles(told),
        "cpu_us_per_request": took["us_per_request"],
    }


def _roles(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {
            **{figure: role[figure] for figure in _KEPT_OF_ROLES},
            "iteration_tokens": role["iteration_tokens"]["mean"],
        }
        for name, role in told["roles"].items()
    }


def _per_gpu(result: RunResult) -> float:
    return (result.offered_rps or 0.0) / result.record.num_gpus


def _as_json(best: RunResult, one: Goodput) -> dict[str, Any]:
    return {
        "cluster": one.cluster,
        "gpus": best.record.num_gpus,
        "rate_scale": rounded(best.facts.rate_scale),
        # The rate itself: requests over the time in which they arrive.
        "rps": rounded(best.offered_rps or 0.0),
        "rps_per_gpu": rounded(_per_gpu(best)),
        "attainment": rounded(best.slo_attainment),
        "ending": one.found.ending.value,
        "is_monotone": one.found.is_monotone,
        "probes": [[rounded(p.rate), rounded(p.attainment)] for p in one.found.probes],
    }
