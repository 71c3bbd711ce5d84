"""The JSON file of a simulation: a list `runs`, the same bytes for the same runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulator.metrics.summary import Json, RunResult, summary
from simulator.report.whole_file import replace_file


def report_json(results: Sequence[RunResult], more: Mapping[str, Json] | None = None) -> str:
    """The text of the file; `more` stands beside `runs`."""
    content = {"runs": [summary(result) for result in results], **(more or {})}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(
    path: Path, results: Sequence[RunResult], more: Mapping[str, Json] | None = None
) -> None:
    """Replace the file, or leave it as it was. Raises: OSError."""
    text = report_json(results, more)
    replace_file(path, text)
