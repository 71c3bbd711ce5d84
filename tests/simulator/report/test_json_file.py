"""The JSON file: the same bytes for the same runs.

    .venv/bin/python -m simulator.report.testing FOLDER

writes FOLDER/golden.json; look at the difference before you put it beside this file.
"""

import json
from pathlib import Path

from simulator.metrics.testing import InventedRun
from simulator.report.json_file import report_json, write_json
from simulator.report.testing import golden_results

GOLDEN = Path(__file__).with_name("golden.json")


def test_the_report_of_a_small_run_is_the_golden_one() -> None:
    assert report_json(golden_results()) == GOLDEN.read_text("utf-8")


def test_the_same_run_gives_the_same_bytes() -> None:
    assert report_json([InventedRun().result()]) == report_json([InventedRun().result()])


def test_another_seed_gives_another_report() -> None:
    assert report_json([InventedRun(seed=2).result()]) != report_json([InventedRun().result()])


def test_more_stands_beside_the_runs(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, [InventedRun(num_requests=3).result()], {"note": "kept"})
    content = json.loads(path.read_text("utf-8"))
    assert content["note"] == "kept"
    assert len(content["runs"]) == 1
