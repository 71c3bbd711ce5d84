"""Goodput of a policy: the highest rate of a load at which enough requests meet their goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduling.policy import Policy
from simulator.cluster_spec import ClusterSpec
from simulator.metrics.summary import Json, RunResult, rounded
from simulator.rate_search import Ending, FoundRate, RateSearch, highest_rate
from simulator.report.columns import three_digits
from simulator.rows import aligned
from simulator.runs import Runner, Trial


@dataclass(frozen=True, slots=True)
class Goodput:
    """What a search found for one policy on one cluster."""

    policy: str
    cluster: str
    search: RateSearch
    found: FoundRate
    # Of each probe, in their order.
    trials: tuple[Trial, ...]

    @property
    def best(self) -> RunResult | None:
        """The run at the rate that was found."""
        rate = self.found.rate
        runs = (trial.result for trial in self.trials)
        return next((run for run in runs if run.facts.rate_scale == rate), None)

    @property
    def complete(self) -> list[RunResult]:
        """The runs that were not given up."""
        return [trial.result for trial in self.trials if trial.is_complete]


def search_goodput(
    runner: Runner,
    policy: Policy,
    cluster: ClusterSpec,
    search: RateSearch,
    *,
    is_for_report: bool = False,
    is_traced: bool = False,
) -> Goodput:
    """Probe by simulation; a run that cannot serve any more is given up, to save time.

    For a report, only if it cannot even serve half of what it should: curves need the others.
    """
    trials: list[Trial] = []
    least = search.target / 2 if is_for_report else search.target

    def attainment_at(rate_scale: float) -> float:
        trial = runner.trial(policy, cluster, rate_scale, least, is_traced=is_traced)
        trials.append(trial)
        return trial.attainment

    found = highest_rate(attainment_at, search)
    return Goodput(policy.name, cluster.text, search, found, tuple(trials))


def goodput_json(one: Goodput) -> Mapping[str, Json]:
    """An entry of `goodput_search`."""
    best = one.best
    return {
        "policy": one.policy,
        "cluster": one.cluster,
        "target_attainment": rounded(one.search.target),
        "tolerance": rounded(one.search.tolerance),
        "max_probes": one.search.max_probes,
        "ending": one.found.ending.value,
        "is_monotone": one.found.is_monotone,
        "rate_scale": None if one.found.rate is None else rounded(one.found.rate),
        "offered_rps": _offered(best),
        "goodput_rps": None if best is None else rounded(best.goodput_rps),
        "gpus": None if best is None else best.record.num_gpus,
        "probes": [_probe(trial) for trial in one.trials],
    }


def _probe(trial: Trial) -> Mapping[str, Json]:
    result, is_complete = trial.result, trial.is_complete
    return {
        "rate_scale": rounded(result.facts.rate_scale),
        # Of a run that was given up: an upper bound.
        "slo_attainment": rounded(trial.attainment),
        "is_complete": is_complete,
        "offered_rps": _offered(result) if is_complete else None,
        "goodput_rps": rounded(result.goodput_rps) if is_complete else None,
        "throughput_rps": rounded(result.throughput_rps) if is_complete else None,
    }


def _offered(result: RunResult | None) -> float | None:
    offered = None if result is None else result.offered_rps
    return None if offered is None else rounded(offered)


def goodput_table(found: Sequence[Goodput]) -> str:
    """A row for each search; ends in a newline."""
    head = ("policy", "cluster", "serves req/s", "rate x", "goodput req/s", "per GPU", "attained %",
            "runs", "")  # fmt: skip
    rows = [head, *(_row(one) for one in found)]
    target = f"{100 * found[0].search.target:g} %"
    title = (
        f"highest rate at which {target} of the requests meet their goals, "
        f"to within {100 * found[0].search.tolerance:g} %"
    )
    return f"{title}\n{aligned(rows, num_left=2)}"


_WORDS = {
    Ending.FOUND: "",
    Ending.NO_LIMIT: "or more: no rate failed",
    Ending.NOTHING_SERVES: "no rate serves",
    Ending.OUT_OF_PROBES: "at least; runs were spent",
}


def _row(one: Goodput) -> tuple[str, ...]:
    best, words = one.best, [_WORDS[one.found.ending]]
    if not one.found.is_monotone:
        words.append("a lower rate failed")
    remark = "; ".join(word for word in words if word)
    if best is None:
        return (one.policy, one.cluster, *("-",) * 5, str(len(one.trials)), remark)
    offered = best.offered_rps
    return (
        one.policy,
        one.cluster,
        "-" if offered is None else three_digits(offered),
        three_digits(best.facts.rate_scale),
        three_digits(best.goodput_rps),
        three_digits(best.goodput_rps / best.record.num_gpus),
        f"{100 * best.slo_attainment:.1f}",
        str(len(one.trials)),
        remark,
    )
