"""The command line of a program that turns measured cells into tables."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.record import write_results
from benchmarks.scheduling.cell_log import (
    Entry,
    MixedSettings,
    check_settings,
    read_entries,
)


def run_report(module: str, measured_by: str, markdown: Callable[[Sequence[Entry]], str]) -> int:
    """Print the tables of the files that are named, and keep their cells where that is asked.

    `measured_by` is the module that writes such files. Returns the exit code: 1 without any cell,
    2 where cells were measured in different ways.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.jsonl")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    entries = [entry for file in args.files for entry in read_entries(file)]
    if not entries:
        print(f"{args.files[0]} holds no cell; run python -m {measured_by} first")
        return 1
    try:
        check_settings(entries)
    except MixedSettings as mixed:
        print(f"error: {mixed}", file=sys.stderr)
        return 2
    print(markdown(entries))
    if args.json is not None:
        is_quick = any(entry["settings"]["quick"] for entry in entries)
        write_results(args.json, {"cells": entries}, (), is_quick)
    return 0
