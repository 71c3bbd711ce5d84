"""Finds the smallest cluster of each policy by simulation, and says it in a table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduling.policy import Policy
from simulator.cluster_search import (
    Assessment,
    ClusterSearch,
    FoundCluster,
    Shape,
    smallest_cluster,
)
from simulator.cluster_spec import ClusterSpec
from simulator.metrics.summary import Json, RunResult, rounded
from simulator.report.columns import three_digits
from simulator.rows import aligned
from simulator.runs import Runner, Trial


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What a search found for one policy."""

    policy: str
    shape: Shape
    search: ClusterSearch
    found: FoundCluster
    # Of each cluster that was looked at, in their order.
    trials: tuple[Trial, ...]

    @property
    def best(self) -> RunResult | None:
        """The run of the smallest cluster."""
        if self.found.best is None:
            return None
        return self._trial_of(self.found.best).result

    @property
    def nearest(self) -> RunResult:
        """The same, or the run with the highest attainment."""
        by_attainment = max(self.trials, key=lambda trial: trial.attainment)
        return self.best or by_attainment.result

    @property
    def best_of_size(self) -> tuple[Trial, ...]:
        """Of each number of GPUs the best shape, ascending."""
        best: dict[int, Trial] = {}
        for trial in self.trials:
            num_gpus = trial.result.record.num_gpus
            if num_gpus not in best or trial.attainment > best[num_gpus].attainment:
                best[num_gpus] = trial
        return tuple(best[num_gpus] for num_gpus in sorted(best))

    def _trial_of(self, spec: ClusterSpec) -> Trial:
        position = [looked_at for looked_at, _ in self.found.assessed].index(spec)
        return self.trials[position]


def plan_cluster(
    runner: Runner, policy: Policy, shape: Shape, rate_scale: float, search: ClusterSearch
) -> ClusterPlan:
    """Search; hopeless runs are given up, those near the target never."""
    trials: list[Trial] = []

    def assess(cluster: ClusterSpec) -> Assessment:
        trial = runner.trial(policy, cluster, rate_scale, search.target / 2)
        trials.append(trial)
        return Assessment(trial.attainment, _lacks_prefill(trial.result))

    found = smallest_cluster(assess, shape, search)
    return ClusterPlan(policy.name, shape, search, found, tuple(trials))


def _lacks_prefill(result: RunResult) -> bool:
    """Whether more prefill workers would help more than decode workers.

    Gaps that are too long speak for decode. So do late first tokens where prompts wait because
    computed ones cannot leave: then more wait for room to decode than for a prefill worker.
    """
    requests = result.record.requests
    late_first = requests.all.num_requests - requests.all.num_attained_ttft
    late_tokens = requests.all.num_requests - requests.all.num_attained_gaps
    if late_first != late_tokens and late_tokens > late_first:
        return False
    phases = requests.seconds_by_phase
    return phases.get("prompt_queued", 0.0) >= phases.get("generation_queued", 0.0)


def plan_json(plan: ClusterPlan) -> Mapping[str, Json]:
    """An entry of `plans`."""
    best = plan.best
    return {
        "policy": plan.policy,
        "shape": plan.shape.value,
        "target_attainment": rounded(plan.search.target),
        "max_workers": plan.search.max_workers,
        "max_runs": plan.search.max_runs,
        "is_cut_short": plan.found.is_cut_short,
        "prefill_demand": rounded(plan.search.prefill_demand),
        "decode_demand": rounded(plan.search.decode_demand),
        "cluster": None if best is None else best.facts.cluster,
        "workers": None if plan.found.best is None else plan.found.best.num_workers,
        "gpus": None if best is None else best.record.num_gpus,
        "slo_attainment": None if best is None else rounded(best.slo_attainment),
        "goodput_rps": None if best is None else rounded(best.goodput_rps),
        "curve": [_point(trial) for trial in plan.trials],
    }


def _point(trial: Trial) -> Mapping[str, Json]:
    result = trial.result
    tally = result.record.requests.all
    return {
        "cluster": result.facts.cluster,
        "gpus": result.record.num_gpus,
        # Of a run that was given up: an upper bound; the other shares are of what had ended.
        "slo_attainment": rounded(trial.attainment),
        "is_complete": trial.is_complete,
        "ttft_attainment": rounded(tally.share(tally.num_attained_ttft)),
        "token_attainment": rounded(tally.share(tally.num_attained_gaps)),
        "goodput_rps": rounded(result.goodput_rps) if trial.is_complete else None,
    }


def plan_table(plans: Sequence[ClusterPlan]) -> str:
    """The smallest cluster of each policy, and attainment by size; ends in a newline."""
    head = ("policy", "cluster", "GPUs", "attained %", "goodput req/s", "TTFT p99 ms",
            "TBT p99 ms", "runs", "")  # fmt: skip
    target = f"{100 * plans[0].search.target:g} %"
    title = f"smallest cluster with which {target} of the requests meet their goals"
    sizes = [("policy", "attained % by GPUs, best shape of each"), *map(_sizes, plans)]
    found = aligned([head, *map(_row, plans)], num_left=2)
    return f"{title}\n{found}\n{aligned(sizes, num_left=2)}"


def _row(plan: ClusterPlan) -> tuple[str, ...]:
    remark = "search cut short by --max-runs" if plan.found.is_cut_short else ""
    best = plan.best
    if best is None:
        limit = f"none of up to {plan.search.max_workers} workers serves"
        words = "; ".join(word for word in (limit, remark) if word)
        attained = 100 * max(trial.attainment for trial in plan.trials)
        cells = ("-", "-", f"{attained:.1f}", "-", "-", "-")
        return (plan.policy, *cells, str(len(plan.trials)), words)
    requests = best.record.requests
    return (
        plan.policy,
        best.facts.cluster,
        str(best.record.num_gpus),
        f"{100 * best.slo_attainment:.1f}",
        three_digits(best.goodput_rps),
        *(
            "-" if figures is None else three_digits(1000 * figures.p99)
            for figures in (requests.ttft.figures(), requests.tbt.figures())
        ),
        str(len(plan.trials)),
        remark,
    )


def _sizes(plan: ClusterPlan) -> tuple[str, str]:
    points = (
        f"{trial.result.record.num_gpus}: {'' if trial.is_complete else '<'}"
        f"{100 * trial.attainment:.1f}"
        for trial in plan.best_of_size
    )
    return (plan.policy, "  ".join(points))
