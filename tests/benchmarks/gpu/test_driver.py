"""The GPU benchmark as it is called: each part by itself, whatever becomes of the others."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.driver import SHARES, run_part, seconds_for
from benchmarks.gpu.part import PARTS
from benchmarks.report.fields import read_results
from benchmarks.report.page import page_of
from runtime.clock import MonotonicClock

TINY = ["--device", "cpu", "--shape", "2m", "--attention", "torch", "--quick"]


def test_what_a_part_leaves_of_its_time_is_for_those_after_it() -> None:
    assert SHARES.keys() == PARTS.keys()
    names = list(SHARES)
    left_s, given = 480.0, []
    for index, name in enumerate(names):
        seconds = seconds_for(name, names[index + 1 :], left_s)
        given.append(seconds)
        left_s -= seconds
    assert given == pytest.approx([480.0 * share for share in SHARES.values()])
    assert left_s == pytest.approx(0.0)
    assert seconds_for("cluster", [], 300.0) == 300.0


def test_a_part_that_fails_is_told_with_its_error(tmp_path: Path) -> None:
    arguments = [*TINY, "--lengths", str(tmp_path / "none.csv"), "--shape", "9b"]
    run = run_part("push", arguments, tmp_path, 60.0, MonotonicClock())
    assert (run.outcome, run.journal) == ("failed", {})
    assert "9b" in run.why


def test_without_time_a_part_is_not_run(tmp_path: Path) -> None:
    run = run_part("push", TINY, tmp_path, 1.0, MonotonicClock())
    assert (run.outcome, run.seconds) == ("not run", 0.0)


@pytest.mark.slow
def test_parts_run_on_a_cpu_and_the_page_of_results_shows_the_file(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    # Those with files of their own and with processes of their own.
    names = ("profile", "cluster")
    assert main([*TINY, "--parts", ",".join(names), "--minutes", "6", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    outcomes = {name: part["outcome"] for name, part in content["parts"].items()}
    assert outcomes == {name: "ran" if name in names else "not run" for name in PARTS}
    # Nothing is judged that was not measured on a GPU.
    assert content["targets"] == []
    assert (tmp_path / "gpu_iteration_times.csv").exists()
    (results,) = read_results(tmp_path)
    assert "gpu.json" in page_of([results], "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert main(["--out", str(out)]) == 1
    assert "no CUDA device" in capsys.readouterr().out
    assert not out.exists()
