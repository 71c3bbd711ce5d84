"""Each mechanism's own gain: every policy beside itself with one mechanism taken away.

Run: python -m benchmarks.scheduling.ablations --traces DIR [--quick] [--out FILE.jsonl] [--jobs N]
then: python -m benchmarks.scheduling.ablation_report FILE.jsonl [--json FILE]
Cells are measured as by `python -m benchmarks.scheduling` and kept in the same way: stopped, it
goes on where it was, by the same command. Which mechanisms there are, and what stands in place of
each, is in variants.py. Host memory for swap is 60 GiB a worker, as in the papers' evaluations.
"""

import argparse
import sys

from benchmarks.scheduling.sweep import add_options, run_sweep
from benchmarks.scheduling.variants import BASES, subjects_of

_SWAP_GIB = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, "ablations.jsonl")
    parser.set_defaults(swap_gib=_SWAP_GIB)
    parser.add_argument("--policies", default=",".join(BASES), metavar="A,B")
    args = parser.parse_args()
    unknown = set(args.policies.split(",")) - set(BASES)
    if unknown:
        parser.error(f"no mechanisms of {', '.join(unknown)}; there are {', '.join(BASES)}")
    return run_sweep(args, subjects_of(args.policies.split(",")))


if __name__ == "__main__":
    sys.exit(main())
