import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scheduling.ratios import common, rate_per_gpu, ratios
from benchmarks.scheduling.report import beside_baselines, markdown, rates, where_it_loses
from benchmarks.scheduling.report_command import run_report

LATENCY = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 2.0, "max": 3.0}


def entry(policy: str, rps: float | None, trace: str = "azure", **more: Any) -> Mapping[str, Any]:
    found = {"rps": rps, "rps_per_gpu": rps, "ending": "found"}
    return {
        "trace": trace,
        "hardware": "a100",
        "policy": policy,
        "settings": {"seed": 0, "quick": False},
        "requests": 100,
        "too_long": 3,
        "slo": "ttft=1s",
        "goodput": None if rps is None else found,
        "common": {
            "offered_rps": 4.0,
            "throughput_rps": 3.9,
            "slo_attainment": 0.9,
            "preemptions": 2,
            "kvc_written_share": 0.5,
            "ttft_ms": LATENCY,
            "tbt_ms": LATENCY,
            "tpot_ms": LATENCY,
            "jct_s": LATENCY,
            **more,
        },
    }


def test_ratios_are_taken_within_a_cell() -> None:
    entries = [
        entry("fcfs", 2.0),
        entry("default", 4.0),
        entry("fcfs", 5.0, "rag"),
        entry("default", 5.0, "rag"),
        entry("default", 9.0, "only here"),
    ]

    found = ratios(entries, "default", "fcfs", rate_per_gpu)

    assert [cell.ratio for cell in found.cells] == [2.0, 1.0]
    assert found.geometric_mean == pytest.approx(2**0.5)


def test_who_serves_no_rate_counts_and_spoils_no_mean() -> None:
    entries = [
        entry("fcfs", None),
        entry("default", 4.0),
        entry("fcfs", 5.0, "rag"),
        entry("default", None, "rag"),
    ]

    found = ratios(entries, "default", "fcfs", rate_per_gpu)

    assert found.geometric_mean is None
    assert [cell.trace for cell in found.below(0.95)] == ["rag"]
    assert [cell.trace for cell in found.above(1.05)] == ["azure"]


def test_a_figure_that_a_run_does_not_have_is_left_out() -> None:
    entries = [entry("fcfs", 2.0, tbt_ms=dict.fromkeys(LATENCY)), entry("default", 2.0)]
    assert not ratios(entries, "default", "fcfs", common("tbt_ms", "p99")).cells


def test_cells_where_the_default_loses_are_named() -> None:
    entries = [entry("sarathi", 2.0), entry("oracle", 2.0), entry("default", 1.85)]
    told = where_it_loses(entries)
    assert "`azure` on a100: 0.93 of `sarathi`" in told
    assert "oracle`" not in told


def test_equal_goodput_is_told_in_gpus() -> None:
    told = beside_baselines([entry("fcfs", 2.0), entry("default", 4.0)])
    assert "| `fcfs` | 1 | 2.00 | 2.00 | 2.00 | -50 % |" in told


def test_a_policy_that_serves_no_rate_is_told_from_one_that_was_not_measured() -> None:
    told = rates([entry("fcfs", None), entry("default", 4.0), entry("default", 1.0, "rag")])
    assert "| azure, a100 | 100 (3) | none | 4 |" in told
    assert "| rag, a100 | 100 (3) |  | 1 |" in told


def test_a_pair_of_which_every_prompt_is_too_long_is_told() -> None:
    nothing = {**entry("fcfs", None), "common": None, "requests": 0}
    assert "every prompt is too long for a worker" in markdown([nothing])


def test_a_rate_that_no_search_could_bound_spoils_no_ratio() -> None:
    unbounded = entry("default", 50.0)
    unbounded = {**unbounded, "goodput": {**unbounded["goodput"], "ending": "no limit found"}}

    assert not ratios([entry("fcfs", 2.0), unbounded], "default", "fcfs", rate_per_gpu).cells
    assert "| 50 + |" in rates([unbounded])


def without_limit(policy: str, rps: float) -> Mapping[str, Any]:
    found = entry(policy, rps)
    return {**found, "goodput": {**found["goodput"], "ending": "no limit found"}}


def test_a_baseline_of_which_no_rate_failed_is_lost_to_where_one_was_above_ours() -> None:
    told = where_it_loses([without_limit("fcfs", 4.0), entry("default", 3.0)])
    assert told.endswith("- `azure` on a100: at most 0.75 of `fcfs`, which failed at no rate")


def test_nothing_is_known_of_two_of_which_no_rate_failed() -> None:
    for ours in (without_limit("default", 3.0), entry("default", 3.9)):
        told = where_it_loses([without_limit("fcfs", 4.0), ours])
        assert told == "The default loses to no baseline in any of these cells."


def test_a_report_of_cells_that_were_measured_in_different_ways_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [entry("fcfs", 1.0), {**entry("default", 2.0), "settings": {"seed": 0, "quick": True}}]
    files = [tmp_path / f"{number}.jsonl" for number in range(len(cells))]
    for file, cell in zip(files, cells, strict=True):
        file.write_text(json.dumps(cell) + "\n")
    kept = tmp_path / "kept.json"
    monkeypatch.setattr("sys.argv", ["report", *map(str, files), "--json", str(kept)])
    assert run_report("report", "sweep", markdown) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert "quick is False and True" in told.err
    assert not kept.exists()
