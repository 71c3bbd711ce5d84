"""`tandem simulate`: what a cluster would do with a load, before anybody buys it."""

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from scheduling.policy import POLICIES
from simulator.cluster_spec import ClusterSpecInvalid, cluster_for
from simulator.hardware.description import Hardware, HardwareUnreadable, load_hardware
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.summary import RunFacts, RunResult, summary
from simulator.published_slo import PublishedChoice
from simulator.report.json_file import write_json
from simulator.report.text_table import text_table
from simulator.simulation import Scenario, Simulation
from simulator.slo import ModelledIdleTimes, SloAssignment, SloPlan
from simulator.slo_text import SloTextInvalid, slo_plan
from simulator.traces.errors import TraceError
from simulator.traces.reading import read_workload
from simulator.traces.workload import Workload

_EXAMPLES = """\
examples:
  tandem simulate --trace requests.csv --hardware h100 --cluster 4
  tandem simulate --trace requests.csv --policy default,fcfs,sarathi --rate-scale 2 --json out.json
  tandem simulate --trace lengths.csv --rate 3 --policy ecoserve --cluster prefill:1,decode:3

The trace may be a csv file with the columns arrival_s, prompt_tokens and output_tokens, or any of
the formats of docs/traces.md.
"""


class UsageError(ValueError):
    """The command line asks for something that cannot be."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code is 0, 1 for a bad file, 2 for wrong usage."""
    try:
        _simulate(_parser().parse_args(argv))
    except (UsageError, ClusterSpecInvalid, SloTextInvalid) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TraceError, HardwareUnreadable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> _Parser:
    parser = _Parser(
        prog="tandem simulate",
        description="Run a trace through the product's own router and workers in virtual time.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, metavar="FILE", help="requests to run")
    known = ", ".join(POLICIES)
    add("--policy", default="default", metavar="A,B", help=f"policies to compare, of {known}")
    about = "workers: a number, mixed:N or prefill:N,decode:M (default: 1)"
    add("--cluster", default="1", metavar="SPEC", help=about)
    about = "what a worker is: h100, h200, a100, cpu, another shipped name or a JSON file"
    add("--hardware", default="h100", metavar="NAME", help=about)
    about = "goals, such as ttft=1s,tpot=100ms (default: published ones that fit the load)"
    add("--slo", default="published", metavar="GOALS", help=about)
    add("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (default: 0)")
    about = "let requests come so many times faster"
    add("--rate-scale", type=float, default=1.0, metavar="X", help=about)
    about = "requests per second: stretches arrivals, or draws them where the trace has none"
    add("--rate", type=float, metavar="RPS", help=about)
    add("--max-requests", type=int, metavar="N", help="only the first so many")
    about = "what callers allow their answers (default: the longest answer, as a power of two)"
    add("--max-tokens", type=int, metavar="N", help=about)
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _simulate(options: argparse.Namespace) -> None:
    policies = [name.strip() for name in options.policy.split(",") if name.strip()]
    for name in policies:
        if name not in POLICIES:
            raise UsageError(f"unknown policy {name!r}; use some of {', '.join(POLICIES)}")
    clusters = {
        name: cluster_for(options.cluster, is_disaggregated=POLICIES[name].is_disaggregated)
        for name in policies
    }
    hardware = load_hardware(options.hardware)
    workload = read_workload(
        options.trace,
        rate_scale=options.rate_scale,
        rate_rps=options.rate,
        max_requests=options.max_requests,
        seed=options.seed,
    )
    plan = slo_plan(options.slo, _published_choice(hardware, workload))
    scenario = _scenario(options, hardware, workload, plan)
    results: list[RunResult] = []
    for name in policies:
        cluster = clusters[name]
        facts = RunFacts(
            policy=name,
            trace=workload.name,
            cluster=cluster.text,
            hardware=hardware.name,
            seed=options.seed,
            slo=plan.text,
            slo_source=plan.source,
            ttft_goal_s=plan.fixed_ttft_s,
            token_goal_s=plan.fixed_token_s,
            model=hardware.model,
            rate_scale=options.rate_scale,
            settings={"max_tokens": scenario.max_tokens},
        )
        record = Simulation(scenario, POLICIES[name], cluster, RunRecorder()).run()
        results.append(RunResult(facts, record))
    print(text_table([summary(result) for result in results]))
    if options.json is not None:
        write_json(options.json, results)


def _scenario(
    options: argparse.Namespace, hardware: Hardware, workload: Workload, plan: SloPlan
) -> Scenario:
    longest = max(request.num_output_tokens for request in workload.requests)
    max_tokens = 1 << (longest - 1).bit_length() if options.max_tokens is None else 0
    if options.max_tokens is not None:
        if options.max_tokens < 1:
            raise UsageError(f"--max-tokens {options.max_tokens} must be at least 1")
        max_tokens = options.max_tokens
    chunk_tokens = hardware.limits.max_num_batched_tokens
    idle = ModelledIdleTimes(hardware.batch_time_model(), chunk_tokens)
    slos = SloAssignment(plan, idle, options.seed).slos_of(workload.requests)
    return Scenario(workload, hardware, tuple(slos), max_tokens)


def _published_choice(hardware: Hardware, workload: Workload) -> PublishedChoice:
    billions = re.search(r"(\d+(?:\.\d+)?)[Bb]\b", hardware.model)
    return PublishedChoice(
        model_billions=float(billions[1]) if billions else 8.0,
        prompt_tokens=statistics.fmean(r.num_prompt_tokens for r in workload.requests),
        output_tokens=statistics.fmean(r.num_output_tokens for r in workload.requests),
    )
