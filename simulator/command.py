"""`tandem simulate`: what a cluster would do with a load, before anybody buys it."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from runtime.clock import MonotonicClock
from scheduling.policies import POLICIES
from scheduling.policy import Policy
from simulator.cluster_spec import ClusterSpec, cluster_for
from simulator.goodput import Goodput, goodput_json, goodput_table, search_goodput
from simulator.load_options import add_load_options, add_output_options, load_of, policies_of
from simulator.metrics.summary import Json, RunResult, summary
from simulator.rate_search import RateSearch
from simulator.report.canvas import check_plots
from simulator.report.json_file import write_json
from simulator.report.text_table import text_table
from simulator.reporting import write_report, write_wall_times
from simulator.runs import Runner
from simulator.side_by_side import run_side_by_side
from simulator.usage import (
    Parser,
    UsageError,
    count,
    guarded,
    positives,
    share,
    step,
)

_EXAMPLES = """\
examples:
  tandem simulate --cluster 4 --policy default,fcfs
  tandem simulate --trace requests.csv --hardware h100 --cluster 4
  tandem simulate --trace requests.csv --policy default,fcfs,sarathi --rate-scale 2 --json out.json
  tandem simulate --trace requests.csv --policy default,fcfs --rate-scale 1,2,4 --report out
  tandem simulate --trace lengths.csv --rate 3 --policy ecoserve --cluster prefill:1,decode:3
  tandem simulate --trace requests.csv --slo ttft=500ms,tpot=50ms --search-goodput
  tandem simulate --policy default,fcfs --set victims=last-arrived
  tandem simulate --policy default,default+victims=last-arrived

The trace may be a csv file with the columns arrival_s, prompt_tokens and output_tokens, or any of
the formats of docs/traces.md; docs/simulator.md says what is modelled, and how well.
Without --trace, a sample of a public one that comes with the simulator is taken.

Exit codes: 0 done, 1 a file cannot be read or written, 2 wrong usage, 130 interrupted.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code is 0, 1 for a bad file, 2 for wrong usage."""
    return guarded(_simulate, argv)


def _parser() -> Parser:
    parser = Parser(
        "tandem simulate",
        "Run a trace through the product's own router and workers in virtual time.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add_load_options(parser)
    known = ", ".join(POLICIES)
    add("--policy", default="default", metavar="A,B", help=f"policies to compare, of {known}")
    about = "workers: a number, mixed:N or prefill:N,decode:M (default: 1)"
    add("--cluster", default="1", metavar="SPEC", help=about)
    about = "let requests come so many times faster; several with commas for a curve"
    add("--rate-scale", type=positives, metavar="X", help=about)
    about = "requests per second: stretches arrivals, or draws them where the trace has none"
    add("--rate", type=positives, metavar="RPS", help=about)
    about = "find the highest rate that serves; starts at the rate given"
    add("--search-goodput", action="store_true", help=about)
    about = "share of the requests that must meet their goals there (default: 0.9)"
    add("--attainment", type=share, default=0.9, metavar="SHARE", help=about)
    about = "how exactly the rate is found, relative (default: 0.05)"
    add("--tolerance", type=step, default=0.05, metavar="SHARE", help=about)
    about = "runs that a search may take for each policy (default: 20)"
    add("--max-probes", type=count, default=20, metavar="N", help=about)
    about = "write an HTML page, plots and a Chrome trace there (needs matplotlib)"
    add_output_options(parser, about)
    return parser


def _simulate(argv: Sequence[str]) -> None:
    options = _parser().parse_args(argv)
    chosen = [
        (policy, cluster_for(options.cluster, is_disaggregated=policy.is_disaggregated))
        for policy in policies_of(options.policy, options.set, is_lending=not options.no_lending)
    ]
    rates = _Rates.of(options)
    if options.report is not None:
        check_plots()
    load = load_of(options, rates.read_at_rps)
    runner = Runner(load, MonotonicClock(), None if options.quiet else sys.stderr)
    if options.search_goodput:
        _search(options, runner, chosen, rates.scales[0])
        return
    jobs = [
        partial(Runner.run, policy=policy, cluster=cluster, rate_scale=scale)
        for scale in rates.scales
        for policy, cluster in chosen
    ]
    if options.report is not None:
        jobs[0] = partial(jobs[0], is_traced=True)
    names = [
        f"{policy.name} on {cluster.text}, rate x{scale:.4g}"
        for scale in rates.scales
        for policy, cluster in chosen
    ]
    results = run_side_by_side(jobs, runner, options.jobs, names)
    _write(options, runner, results, results, text_table([summary(one) for one in results]), {})


class _Rates:
    """At which rate the trace is read, and at how many times that rate it runs."""

    def __init__(self, read_at_rps: float | None, scales: Sequence[float]) -> None:
        self.read_at_rps, self.scales = read_at_rps, scales

    @classmethod
    def of(cls, options: argparse.Namespace) -> "_Rates":
        """Raises: UsageError."""
        scales: list[float] = options.rate_scale or [1.0]
        rates: list[float] = options.rate or []
        if len(rates) > 1 and len(scales) > 1:
            raise UsageError("--rate and --rate-scale both name several rates; give one of them")
        if options.search_goodput and max(len(rates), len(scales)) > 1:
            raise UsageError("--search-goodput starts at one rate; give one")
        if not rates:
            return cls(None, scales)
        return cls(rates[0], [scale * rate / rates[0] for rate in rates for scale in scales])


def _search(
    options: argparse.Namespace,
    runner: Runner,
    chosen: Sequence[tuple[Policy, ClusterSpec]],
    start: float,
) -> None:
    search = RateSearch(options.attainment, start, options.tolerance, options.max_probes)
    is_for_report = options.report is not None
    jobs = [
        partial(
            search_goodput,
            policy=policy,
            cluster=cluster,
            search=search,
            is_for_report=is_for_report,
            is_traced=is_for_report and number == 0,
        )
        for number, (policy, cluster) in enumerate(chosen)
    ]
    names = [f"the search of {policy.name} on {cluster.text}" for policy, cluster in chosen]
    found = run_side_by_side(jobs, runner, options.jobs, names)
    # Where nothing serves, the run that came nearest to it.
    best = [one.best or _nearest(one) for one in found]
    shown = [run for one in found for run in one.complete] or best
    table = f"{goodput_table(found)}\n{text_table([summary(one) for one in best])}"
    more: dict[str, Json] = {"goodput_search": [goodput_json(one) for one in found]}
    _write(options, runner, best, shown, table, more)


def _nearest(one: Goodput) -> RunResult:
    return max(one.trials, key=lambda trial: (trial.is_complete, trial.attainment)).result


def _write(
    options: argparse.Namespace,
    runner: Runner,
    results: Sequence[RunResult],
    shown: Sequence[RunResult],
    table: str,
    more: dict[str, Json],
) -> None:
    """Table, JSON of `results`, report of what is `shown`."""
    print(table, end="")
    more = {"notes": list(runner.load.notes), **more}
    if options.json is not None:
        write_json(options.json, results, more)
    if options.report is not None:
        folder: Path = options.report
        write_report(folder, results, shown, table, more)
        print(f"\nreport: {folder / 'report.html'}")
    if options.wall_times is not None:
        write_wall_times(options.wall_times, runner.wall_times)
