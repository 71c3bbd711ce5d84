"""A report of runs that nobody simulated, to look at and to compare with.

    python -m simulator.report.testing FOLDER

writes all of its files.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from simulator.metrics.summary import RunResult, summary
from simulator.metrics.testing import InventedRun
from simulator.metrics.trace_log import TraceLog
from simulator.report.chrome_trace import write_chrome_trace
from simulator.report.json_file import write_json
from simulator.report.page import write_page
from simulator.report.plots import write_pictures
from simulator.report.text_table import text_table

_TOKEN_S_BY_POLICY = {"default": 0.015, "fcfs": 0.022, "orca": 0.03, "sarathi": 0.018}


def invented_results(
    rate_scales: Sequence[float] = (0.25, 0.5, 1.0, 1.5), num_requests: int = 300
) -> list[RunResult]:
    """Four policies at each rate."""
    return [
        InventedRun(policy, num_requests, rate_scale, token_s).result()
        for rate_scale in rate_scales
        for policy, token_s in _TOKEN_S_BY_POLICY.items()
    ]


def golden_results() -> list[RunResult]:
    """The run of the golden file in tests/simulator/report/."""
    return [InventedRun(num_requests=60).result()]


def main(folder: Path) -> None:
    """Write everything that a simulation can write."""
    folder.mkdir(parents=True, exist_ok=True)
    results = invented_results()
    table = text_table([summary(result) for result in results])
    (folder / "table.txt").write_text(table, encoding="utf-8")
    write_json(folder / "runs.json", results)
    write_json(folder / "golden.json", golden_results())
    write_pictures(folder / "plots", results)
    write_page(folder / "report.html", results)
    log = TraceLog()
    InventedRun(trace_log=log).result()
    write_chrome_trace(folder / "trace.json", log)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
