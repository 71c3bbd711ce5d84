"""Targets are judged by their median, in the direction that they have."""

import json
from pathlib import Path

import pytest

from benchmarks.record import Target, spread, write_results


@pytest.mark.parametrize(
    ("values", "is_limit", "is_met"),
    [
        ((0.9, 1.0, 5.0), False, True),
        ((0.9, 0.99, 5.0), False, False),
        ((0.1, 1.0, 9.0), True, True),
        ((0.1, 1.01, 9.0), True, False),
    ],
)
def test_the_median_decides_whether_a_target_is_met(
    values: tuple[float, ...], is_limit: bool, is_met: bool
) -> None:
    target = Target("a figure", values, 1.0, is_limit)
    assert target.is_met is is_met
    assert target.line().startswith("met" if is_met else "MISSED")
    assert target.as_json()["is_met"] is is_met


def test_a_single_value_has_no_spread() -> None:
    assert spread([2.0]) == "2.0"
    assert spread([3.0, 1.0, 2.0]) == "2.0 (1.0-3.0)"


def test_a_file_of_results_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "some.json"
    write_results(path, {"rows": [1]}, [Target("a figure", (1.0,), 1.0)], is_quick=True)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["command"].startswith("python ")
    assert content["machine"].endswith("cores")
    assert (content["rows"], content["quick"]) == ([1], True)
    assert content["targets"][0]["is_met"]
