"""Goodput of every policy on every trace and hardware, and its latencies at one common rate.

Run: python -m benchmarks.scheduling --traces DIR [--quick] [--policies A,B] [--out FILE.jsonl]
then: python -m benchmarks.scheduling.report FILE.jsonl [--json FILE]
Everything is simulated (docs/simulator-figures.md), so any machine gives the same figures. What is
in FILE is not measured again: a run may be stopped and gone on with. Each pair of trace and
hardware gets a piece of the trace that lasts about a minute at the rate that three workers sustain.
Goals are the published ones that suit the load; where more than 5 % of the requests miss them on an
idle cluster, Splitwise's, which are multiples of what a request takes alone.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scheduling.cell_log import CellLog, Entry
from benchmarks.scheduling.cell_run import COMMON_FACTOR, NUM_WORKERS, common_of, goodput_of
from benchmarks.scheduling.cells import HARDWARE, REFERENCE, TRACES, Cell, Pair, in_order, pairs
from benchmarks.scheduling.load_piece import (
    fitting,
    load_of,
    num_wanted,
    piece_of,
    read_trace,
    sustained_scale,
)
from runtime.clock import MonotonicClock
from scheduling.policy import POLICIES
from simulator.hardware.description import load_hardware
from simulator.load import Load
from simulator.rate_search import RateSearch
from simulator.traces.workload import Workload

# Of the rate that keeps everybody busy without any waiting.
_FIRST_PROBE = 0.5
# Rates at which a piece arrives in less are not tried: all of it would be there at once.
_LEAST_SPAN_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--traces", type=Path, required=True, metavar="DIR")
    add("--out", type=Path, default=Path("scheduling.jsonl"), metavar="FILE.jsonl")
    add("--policies", default=",".join(POLICIES), metavar="A,B")
    add("--hardware", default=",".join(HARDWARE), metavar="A,B")
    add("--only", default="", metavar="A,B", help="traces whose names begin so")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="small pieces: does the program run")
    add("--minutes", type=float, default=1e9, help="begin no cell after so many")
    args = parser.parse_args()
    unknown = set(args.policies.split(",")) - set(POLICIES)
    if unknown:
        parser.error(f"unknown policies {', '.join(unknown)}; there are {', '.join(POLICIES)}")
    run = _Run(args)
    stems = tuple(args.only.split(","))
    traces = [trace for trace in TRACES if trace.stem.startswith(stems)]
    for pair in pairs(traces, args.hardware.split(",")):
        run.measure(pair, in_order(args.policies.split(",")))
    return 0


class _Run:
    """Goes through pairs until the time is up."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._folder: Path = args.traces
        self._seed: int = args.seed
        self._least, self._most = (80, 80) if args.quick else (300, 1500)
        self._tolerance, self._max_probes = (0.2, 8) if args.quick else (0.05, 12)
        settings = {"seed": self._seed, "quick": args.quick}
        self._log = CellLog(args.out, settings)
        self._ends_at_s: float = time.monotonic() + 60 * args.minutes
        self._workload_by_trace: dict[str, Workload] = {}

    def measure(self, pair: Pair, policies: Sequence[str]) -> None:
        """Every cell of the pair that is missing."""
        cells = [Cell(pair.trace.stem, pair.hardware, policy) for policy in policies]
        missing = [cell for cell in cells if self._log.get(cell) is None]
        if not missing or self._is_over():
            return
        load, about = self._load(pair)
        reference = self._log.get(Cell(pair.trace.stem, pair.hardware, REFERENCE))
        for cell in missing:
            if self._is_over():
                return
            began_at_s = time.monotonic()
            entry = self._log.add(cell, {**about, **self._cell(load, cell.policy, reference)})
            if cell.policy == REFERENCE:
                reference = entry
            _tell(entry, time.monotonic() - began_at_s)

    def _is_over(self) -> bool:
        return time.monotonic() > self._ends_at_s

    def _load(self, pair: Pair) -> tuple[Load | None, Mapping[str, Any]]:
        name = pair.trace.stem
        if name not in self._workload_by_trace:
            # One at a time: some hold millions of names.
            self._workload_by_trace = {name: read_trace(self._folder, pair.trace, self._seed)}
        whole = self._workload_by_trace[name]
        hardware = load_hardware(pair.hardware)
        capacity = hardware.kv.capacity_tokens
        num_requests = self._least
        while True:
            workload, num_left_out = fitting(piece_of(whole, num_requests, self._seed), capacity)
            if num_left_out == num_requests:
                return None, {"requests": 0, "too_long": num_left_out}
            load = load_of(workload, hardware, self._seed)
            wanted = num_wanted(load, NUM_WORKERS, self._least, self._most)
            wanted = min(wanted, len(whole.requests))
            # Twice at most: the longer piece may ask for more or less again.
            if wanted <= num_requests or num_requests > self._least:
                break
            num_requests = wanted
        prompts = [request.num_prompt_tokens for request in workload.requests]
        answers = [request.num_output_tokens for request in workload.requests]
        about = {
            "requests": len(prompts),
            "too_long": num_left_out,
            "slo": load.plan.text,
            "slo_source": load.plan.source,
            "max_tokens": load.max_tokens,
            "prompt_tokens_mean": round(statistics.fmean(prompts)),
            "output_tokens_mean": round(statistics.fmean(answers)),
        }
        return load, about

    def _cell(self, load: Load | None, policy: str, reference: Entry | None) -> dict[str, Any]:
        if load is None:
            return {"goodput": None, "common": None}
        clock, chosen = MonotonicClock(), POLICIES[policy]
        start = _FIRST_PROBE * sustained_scale(load, NUM_WORKERS)
        if reference is not None and reference["goodput"] is not None:
            start = reference["goodput"]["rate_scale"]
        most = max(2.0, load.workload.span_s / _LEAST_SPAN_S / start)
        search = RateSearch(0.9, start, self._tolerance, self._max_probes, most)
        goodput = goodput_of(load, clock, chosen, search)
        common = reference["common_scale"] if reference is not None else None
        if common is None:
            common = start if goodput is None else COMMON_FACTOR * goodput["rate_scale"]
        return {
            "goodput": goodput,
            "common_scale": common,
            "common": common_of(load, clock, chosen, common),
        }


def _tell(entry: Entry, wall_s: float) -> None:
    goodput, common = entry["goodput"], entry["common"]
    rate = "serves no rate" if goodput is None else f"{goodput['rps']:.4g} req/s"
    attained = "" if common is None else f", {100 * common['slo_attainment']:.0f} % at the common"
    names = f"{entry['trace']} {entry['hardware']} {entry['policy']}"
    print(f"{names}: {rate}{attained} ({wall_s:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
