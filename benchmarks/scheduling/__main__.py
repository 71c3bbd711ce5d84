"""Goodput of every policy on every trace and hardware, and its latencies at one common rate.

Run: python -m benchmarks.scheduling --traces DIR [--quick] [--policies A,B] [--out FILE.jsonl]
then: python -m benchmarks.scheduling.report FILE.jsonl [--json FILE]
Everything is simulated (docs/simulator-figures.md), so any machine gives the same figures. What is
in FILE is not measured again: a run may be stopped and gone on with. Each pair of trace and
hardware gets a piece of the trace that lasts about a minute at the rate that three workers sustain.
Goals are the published ones that suit the load; where more than 5 % of the requests miss them on an
idle cluster, Splitwise's, which are multiples of what a request takes alone.
With --kv-share 0.25 workers have a quarter of the hardware's KV memory, so that it is what binds;
--slo sets other goals, --swap-gib more host memory for KV that makes room. --slo published judges
by the published goals everywhere, as `tandem simulate` does without --slo; give it an --out of its
own. A policy may be changed: with --policies ecoserve+predictor=noisy-oracle:0.2 it is told how
long answers will be, to 20 %. `python -m benchmarks.report` shows pairs that were measured under
several goals side by side.
"""

import argparse
import sys

from benchmarks.scheduling.cells import in_order
from benchmarks.scheduling.measuring import Subject
from benchmarks.scheduling.sweep import add_options, run_sweep
from scheduling.policies import POLICIES
from scheduling.policy_settings import PolicyInvalid, policy_of


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, "scheduling.jsonl")
    parser.add_argument("--policies", default=",".join(POLICIES), metavar="A,B")
    args = parser.parse_args()
    try:
        subjects = [Subject(name, policy_of(name)) for name in in_order(args.policies.split(","))]
    except PolicyInvalid as error:
        parser.error(str(error))
    return run_sweep(args, subjects)


if __name__ == "__main__":
    sys.exit(main())
