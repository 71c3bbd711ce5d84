"""One part, in this process: run by the driver, which gives it time and reads its journal.

python -m benchmarks.gpu.part decode --journal FILE.json --seconds 60 [--shape 8b] ...
"""

import argparse
import faulthandler
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from benchmarks.gpu.cluster import measure_cluster
from benchmarks.gpu.decode import measure_decode
from benchmarks.gpu.engine_setup import MODEL_SHAPES, EngineSetup, Options
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.layout import measure_layout
from benchmarks.gpu.prefill import measure_prefill
from benchmarks.gpu.profile import measure_profile
from benchmarks.gpu.push import measure_push
from benchmarks.gpu.shared_prefix import measure_shared_prefix
from engine.attention.choice import AttentionName
from runtime.logging import configure_logging

PARTS: Mapping[str, Callable[[EngineSetup, Journal], None]] = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "push": measure_push,
    "layout": measure_layout,
    "prefix": measure_shared_prefix,
    "profile": measure_profile,
    "cluster": measure_cluster,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What driver and part both take."""
    parser.add_argument("--shape", choices=MODEL_SHAPES, default="8b", help="of the random model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--attention", choices=get_args(AttentionName), default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny: only whether it runs")
    parser.add_argument("--lengths", default="", metavar="FILE", help="of the cluster's requests")


def options_of(args: argparse.Namespace) -> Options:
    """What the command line says."""
    return Options(args.shape, args.device, args.attention, args.quick, args.lengths)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.part", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    add_options(parser)
    args = parser.parse_args(argv)
    # A line for each pass would cost more than the pass.
    configure_logging("benchmark", level="warning")
    # Where a part hangs and is ended from outside, its log says where.
    faulthandler.dump_traceback_later(args.seconds + 5.0)
    if args.device == "cpu":
        torch.set_num_threads(1)
    journal = Journal(args.journal, args.seconds)
    PARTS[args.part](EngineSetup(options_of(args)), journal)
    journal.finish()
    faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
