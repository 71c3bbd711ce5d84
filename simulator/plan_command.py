"""`tandem plan`: how many workers a load needs, and how many of which role."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from runtime.clock import MonotonicClock
from scheduling.policies import POLICIES
from scheduling.policy import Policy
from simulator.cluster_search import ClusterSearch, Shape
from simulator.demand import demand_of
from simulator.load_options import add_load_options, add_output_options, load_of, policies_of
from simulator.metrics.summary import Json
from simulator.plan_plot import plan_picture
from simulator.planning import ClusterPlan, plan_cluster, plan_json, plan_table
from simulator.report.canvas import check_plots
from simulator.report.json_file import write_json
from simulator.report.whole_file import replace_file
from simulator.reporting import write_wall_times
from simulator.runs import Runner
from simulator.side_by_side import run_side_by_side
from simulator.usage import NothingServes, Parser, UsageError, count, guarded, positive, share

_AUTO = "auto"
_EXAMPLES = """\
examples:
  tandem plan --target-rps 12
  tandem plan --trace requests.csv --hardware h100 --slo ttft=500ms,tpot=50ms
  tandem plan --trace requests.csv --hardware h200 --target-rps 40 --policy default,distserve
  tandem plan --trace lengths.csv --target-rps 8 --shape any --json plan.json --report out

Every policy gets the workers it was made for (mixed ones, or prefill and decode), unless --shape
says otherwise. Long traces take long: --max-requests takes their beginning. Without
--trace, a sample of a public one that comes with the simulator is taken.

Exit codes: 0 done, 1 no cluster serves, or a file cannot be read or written, 2 wrong usage,
130 interrupted.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, 1 where no cluster serves or a file is bad, 2 for wrong usage."""
    return guarded(_plan, argv)


def _parser() -> Parser:
    parser = Parser(
        "tandem plan",
        "Find the smallest cluster that serves a load, by simulating it on several.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add_load_options(parser)
    known = ", ".join(POLICIES)
    add("--policy", default="default", metavar="A,B", help=f"policies to plan for, of {known}")
    about = "requests per second: stretches arrivals, or draws them where the trace has none"
    add("--target-rps", "--rate", type=positive, dest="rate", metavar="RPS", help=about)
    about = "let requests come so many times faster"
    add("--rate-scale", type=positive, default=1.0, metavar="X", help=about)
    about = "share of the requests that must meet their goals (default: 0.9)"
    add("--attainment", type=share, default=0.9, metavar="SHARE", help=about)
    about = "clusters to look at: mixed workers, prefill and decode split, or any of the three"
    shapes = [_AUTO, *(shape.value for shape in Shape)]
    add("--shape", choices=shapes, default=_AUTO, help=f"{about} (default: as the policy)")
    about = "the largest cluster that is looked at (default: 64)"
    add("--max-workers", type=count, default=64, metavar="N", help=about)
    about = "runs that the search may take for each policy (default: 60)"
    add("--max-runs", type=count, default=60, metavar="N", help=about)
    add_output_options(parser, "write plan.png, plan.json and table.txt there (needs matplotlib)")
    return parser


def _plan(argv: Sequence[str]) -> None:
    options = _parser().parse_args(argv)
    policies = policies_of(options.policy, options.set, is_lending=not options.no_lending)
    shapes = [_shape(options.shape, policy) for policy in policies]
    if Shape.SPLIT in shapes and options.max_workers < 2:
        raise UsageError("prefill and decode on separate workers need --max-workers 2 or more")
    if options.report is not None:
        check_plots()
    load = load_of(options, options.rate)
    runner = Runner(load, MonotonicClock(), None if options.quiet else sys.stderr)
    demand = demand_of(load, options.rate_scale)
    search = ClusterSearch(
        target=options.attainment,
        max_workers=options.max_workers,
        max_runs=options.max_runs,
        prefill_demand=demand.prefill,
        decode_demand=demand.decode,
    )
    jobs = [
        partial(
            plan_cluster, policy=policy, shape=shape, rate_scale=options.rate_scale, search=search
        )
        for policy, shape in zip(policies, shapes, strict=True)
    ]
    names = [f"{policy.name}, {shape}" for policy, shape in zip(policies, shapes, strict=True)]
    plans = run_side_by_side(jobs, runner, options.jobs, names)
    _write(options, runner, plans)
    if all(plan.best is None for plan in plans):
        # A cut search is told in the table as well, but it is the first thing to change.
        is_cut = any(plan.found.is_cut_short for plan in plans)
        raise NothingServes(
            f"no cluster of up to {options.max_workers} workers was found that serves "
            f"{options.attainment:.0%} of the requests in time; raise "
            f"{'--max-runs' if is_cut else '--max-workers'}, lower the rate, or relax --slo"
        )


def _shape(text: str, policy: Policy) -> Shape:
    if text == _AUTO:
        return Shape.SPLIT if policy.is_disaggregated else Shape.MIXED
    return Shape(text)


def _write(options: argparse.Namespace, runner: Runner, plans: Sequence[ClusterPlan]) -> None:
    table = plan_table(plans)
    print(table, end="")
    results = [plan.nearest for plan in plans]
    more: dict[str, Json] = {
        "notes": list(runner.load.notes),
        "plans": [plan_json(plan) for plan in plans],
    }
    if options.json is not None:
        write_json(options.json, results, more)
    if options.report is not None:
        folder: Path = options.report
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "table.txt", table)
        write_json(folder / "plan.json", results, more)
        (folder / "plan.png").write_bytes(plan_picture(plans))
        print(f"\nreport: {folder / 'plan.png'}")
    if options.wall_times is not None:
        write_wall_times(options.wall_times, runner.wall_times)
