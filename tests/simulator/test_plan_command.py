"""`tandem plan` in one process: small loads, real searches by simulation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.__main__ import main
from simulator.simulation_testing import crowded_options

Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Plan:
    """Runs `plan` with these options over 150 requests at 30 per second, on an A100."""
    trace = tmp_path / "load.csv"
    rows = [f"{number / 30:.3f},{200 + 311 * number % 900},{20 + 37 * number % 150}"
            for number in range(150)]  # fmt: skip
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")

    def run(*options: str) -> tuple[int, str, str]:
        shared = ["--trace", str(trace), "--hardware", "a100", "--slo", "ttft=1s,tpot=80ms"]
        code = main(["plan", *shared, *options])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def written(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_each_policy_gets_its_smallest_cluster(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    code, out, _ = plan("--policy", "default,distserve", "--json", str(file))
    assert code == 0
    assert out.startswith("smallest cluster with which 90 % of the requests meet their goals")
    mixed, split = written(file)["plans"]
    for found, run in zip((mixed, split), written(file)["runs"], strict=True):
        assert (found["cluster"], found["gpus"]) == (run["cluster"], run["gpus"])
        assert run["slo_attainment"] == found["slo_attainment"] >= 0.9
        smaller = [point for point in found["curve"] if point["gpus"] < found["gpus"]]
        assert smaller
        assert all(point["slo_attainment"] < 0.9 for point in smaller)
    assert mixed["cluster"].startswith("mixed:")
    assert split["cluster"].startswith("prefill:")
    # One size fewer was tried in the shapes that could have done.
    one_less = [p for p in split["curve"] if p["gpus"] == split["gpus"] - 1]
    assert len(one_less) >= min(2, split["gpus"] - 2)


def test_twice_the_load_needs_a_larger_cluster(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    gpus = []
    for rate in ("10", "40"):
        plan("--target-rps", rate, "--json", str(file))
        gpus.append(written(file)["plans"][0]["gpus"])
    assert gpus[0] < gpus[1]


def test_no_cluster_may_be_large_enough(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    code, out, err = plan("--max-workers", "1", "--rate-scale", "10", "--json", str(file))
    assert code == 1
    assert "error: no cluster of up to 1 workers was found that serves 90% of the" in err
    assert "none of up to 1 workers serves" in out
    (found,) = written(file)["plans"]
    assert (found["cluster"], found["gpus"]) == (None, None)
    assert len(written(file)["runs"]) == 1


def test_lending_can_be_switched_off(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    shared = (*crowded_options(tmp_path), "--max-workers", "1", "--attainment", "0.01")
    jct_s = []
    for options in ((), ("--no-lending",)):
        plan(*shared, "--json", str(file), *options)
        jct_s.append(written(file)["runs"][0]["jct_s"])
    assert jct_s[0] != jct_s[1]


def test_a_report_holds_the_curve(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    _, out, _ = plan("--policy", "default,distserve", "--report", str(folder), "--max-runs", "4")
    assert {path.name for path in folder.iterdir()} == {"plan.png", "plan.json", "table.txt"}
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert out.startswith((folder / "table.txt").read_text())


def test_any_mix_of_roles_is_looked_at_if_asked_for(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan("--shape", "any", "--json", str(file), "--max-runs", "25")
    tried = {point["cluster"] for point in written(file)["plans"][0]["curve"]}
    kinds = {tuple(part.split(":")[0] for part in cluster.split(",")) for cluster in tried}
    assert {("mixed",), ("prefill", "decode")} <= kinds


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--shape", "round"), "--shape"),
        (("--max-workers", "1", "--policy", "distserve"), "--max-workers 2 or more"),
        (("--target-rps", "-1"), "'-1' is no number"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    plan: Plan, options: tuple[str, ...], says: str
) -> None:
    code, out, err = plan(*options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
