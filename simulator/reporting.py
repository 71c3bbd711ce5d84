"""The folder of a report, and the file of what is not the same in every run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulator.metrics.summary import Json, RunResult
from simulator.report.chrome_trace import write_chrome_trace
from simulator.report.json_file import write_json
from simulator.report.page import write_page
from simulator.report.plots import write_pictures
from simulator.report.whole_file import replace_file


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    shown: Sequence[RunResult],
    table: str,
    more: Mapping[str, Json],
) -> None:
    """report.html, *.png, trace.json, runs.json, table.txt. Raises: PlotsUnavailable, OSError.

    `results` are those of runs.json, `shown` those of the page and the plots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "table.txt", table)
    write_json(folder / "runs.json", results, more)
    write_pictures(folder, shown)
    write_page(folder / "report.html", shown)
    traced = (one.record.trace for one in (*results, *shown))
    trace = next((log for log in traced if log is not None), None)
    if trace is not None:
        write_chrome_trace(folder / "trace.json", trace)


def write_wall_times(path: Path, wall_times: Sequence[Mapping[str, Json]]) -> None:
    """Apart from the figures, which are the same wherever they are computed. Raises: OSError."""
    replace_file(path, json.dumps({"runs": wall_times}, indent=1) + "\n")
