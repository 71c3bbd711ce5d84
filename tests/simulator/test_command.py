"""`tandem simulate` in one process: what it prints, writes and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.__main__ import main
from simulator.simulation_testing import crowded_options

Command = Callable[..., tuple[int, str, str]]

_HEAD = "arrival_s,prompt_tokens,output_tokens"
KEYS = {
    "policy", "trace", "offered_rps", "goodput_rps", "throughput_rps", "slo_attainment", "ttft_ms",
    "tbt_ms", "tpot_ms", "jct_s", "preemptions", "kvc_allocated_share", "kvc_written_share", "gpus",
}  # fmt: skip


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `simulate` with these options over a trace of 40 requests in 4 s, on an H200."""
    trace = tmp_path / "load.csv"
    rows = [f"{0.1 * number},{50 + 37 * number % 900},{1 + 13 * number % 40}"
            for number in range(40)]  # fmt: skip
    trace.write_text("\n".join([_HEAD, *rows]) + "\n")

    def run(*options: str, trace: Path = trace, hardware: str = "h200") -> tuple[int, str, str]:
        code = main(["simulate", "--trace", str(trace), "--hardware", hardware, *options])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def runs_of(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return runs


def test_policies_are_compared_in_a_table_and_in_json(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, out, err = simulate("--policy", "default,fcfs,oracle", "--json", str(file))
    # Nothing was asked for, so whose goals these are is said.
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("note: goals ttft=")
    assert err.endswith("; --slo sets others\n")
    assert out.startswith("load, 10.3 req/s; mixed:1 on h200_llama8b_fp8; goals ")
    assert [run["policy"] for run in runs_of(file)] == ["default", "fcfs", "oracle"]
    for run in runs_of(file):
        assert run.keys() >= KEYS
        assert (run["requests"], run["finished"]) == (40, 40)
        assert run["settings"]["max_tokens"] == 64


def test_every_policy_is_changed_by_what_is_set_and_its_name_tells_it(
    simulate: Command, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    policies = ("--policy", "default,default+late_yields=no,fcfs")
    code, out, _ = simulate(*policies, "--set", "victims=last-arrived", "--json", str(file))
    assert code == 0
    assert [run["policy"] for run in runs_of(file)] == [
        "default+victims=last-arrived",
        "default+victims=last-arrived+late_yields=no",
        "fcfs+victims=last-arrived",
    ]
    assert "default+victims=last-arrived+late_yields=no" in out
    code, _, err = simulate("--set", "victims=oldest")
    assert (code, err.count("\n")) == (2, 1)
    assert "victims cannot be 'oldest'; use one of last-arrived, cheapest" in err


def test_an_oracle_that_errs_is_simulated(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    changes = ("--set", "predictor=noisy-oracle:0.5,bound=padded", "--set", "allocation=exact")
    assert simulate(*changes, "--json", str(file))[0] == 0
    (run,) = runs_of(file)
    assert run["finished"] == 40
    assert run["policy"].endswith("+predictor=noisy-oracle:0.5+bound=padded")


def test_a_number_of_workers_becomes_what_the_policy_was_made_for(
    simulate: Command, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    simulate("--policy", "default,distserve", "--cluster", "4", "--json", str(file))
    clusters = [run["cluster"] for run in runs_of(file)]
    assert clusters == ["mixed:4", "prefill:2,decode:2"]


def test_several_rates_give_a_run_each(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, out, _ = simulate("--rate-scale", "2,1,4", "--json", str(file))
    assert code == 0
    assert [run["rate_scale"] for run in runs_of(file)] == [1, 2, 4]
    offered = [run["offered_rps"] for run in runs_of(file)]
    assert offered == pytest.approx([10.256, 20.513, 41.026], rel=1e-3)
    assert out.count("mixed:1 on") == 3


def test_requests_per_second_stretch_the_trace(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    _, _, err = simulate("--rate", "5,20", "--json", str(file))
    assert [run["offered_rps"] for run in runs_of(file)] == pytest.approx([5, 20], rel=1e-3)
    assert "stretched from 10.26 requests per second to 5" in err


def test_notes_go_to_stderr_and_into_the_file(simulate: Command, tmp_path: Path) -> None:
    trace, file = tmp_path / "lengths.csv", tmp_path / "out.json"
    trace.write_text("prompt_tokens,output_tokens\n100,5\n200,0\n")
    code, _, err = simulate("--rate", "3", "--json", str(file), trace=trace)
    notes = json.loads(file.read_text())["notes"]
    assert code == 0
    assert len(notes) == 2
    assert err.startswith("".join(f"note: {note}\n" for note in notes))
    _, _, err = simulate("--rate", "3", "--quiet", trace=trace)
    assert err == ""


def test_lending_can_be_switched_off(simulate: Command, tmp_path: Path) -> None:
    file, shared = tmp_path / "out.json", crowded_options(tmp_path)
    jct_s = []
    for options in ((), ("--no-lending",)):
        simulate(*shared, "--json", str(file), *options)
        jct_s.append(runs_of(file)[0]["jct_s"])
    assert jct_s[0] != jct_s[1]


def test_a_report_holds_page_plots_table_figures_and_a_trace(
    simulate: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    code, out, _ = simulate("--policy", "default,fcfs", "--rate-scale", "1,2",
                            "--report", str(folder))  # fmt: skip
    assert code == 0
    assert out.endswith(f"report: {folder / 'report.html'}\n")
    names = {path.name for path in folder.iterdir()}
    plots = {"goodput.png", "ttft.png", "tbt.png", "kvc.png", "queues.png", "iterations.png"}
    assert names == plots | {"report.html", "trace.json", "runs.json", "table.txt"}
    assert out.startswith((folder / "table.txt").read_text())
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    named = {event["name"] for event in events if event["ph"] == "X"}
    assert {"prompt_queued", "prefilling", "decoding"} <= named
    assert len(runs_of(folder / "runs.json")) == 4


def test_goodput_is_searched_for_each_policy(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, out, _ = simulate("--policy", "default,fcfs", "--search-goodput", "--json", str(file),
                            "--slo", "ttft=60ms", "--tolerance", "0.1")  # fmt: skip
    assert code == 0
    assert out.startswith("highest rate at which 90 % of the requests meet their goals")
    searches = json.loads(file.read_text())["goodput_search"]
    assert [search["policy"] for search in searches] == ["default", "fcfs"]
    for search, run in zip(searches, runs_of(file), strict=True):
        assert search["ending"] == "found"
        assert run["rate_scale"] == search["rate_scale"]
        assert run["slo_attainment"] >= 0.9
        probes = {probe["rate_scale"]: probe for probe in search["probes"]}
        assert len(probes) == len(search["probes"])
        assert probes[search["rate_scale"]]["is_complete"]
        above = [rate for rate in probes if rate > search["rate_scale"]]
        assert min(above) <= search["rate_scale"] * 1.1001
        assert all(probes[rate]["slo_attainment"] < 0.9 for rate in above)


def test_a_goal_that_nobody_can_meet_is_said_so(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, out, _ = simulate("--search-goodput", "--slo", "ttft=1us", "--max-probes", "3",
                            "--json", str(file))  # fmt: skip
    assert code == 0
    assert "runs were spent" in out
    (search,) = json.loads(file.read_text())["goodput_search"]
    assert (search["rate_scale"], search["goodput_rps"]) == (None, None)
    assert len(runs_of(file)) == 1


def test_requests_that_fail_are_told(simulate: Command, tmp_path: Path) -> None:
    trace = tmp_path / "huge.csv"
    trace.write_text(f"{_HEAD}\n0,9000000,5\n1,10,5\n")
    code, out, err = simulate(trace=trace)
    assert code == 0
    assert "note: default: 1 requests failed with CanNeverFit" in err
    assert "50.0" in out


def test_wall_times_have_a_file_of_their_own(simulate: Command, tmp_path: Path) -> None:
    file = tmp_path / "wall.json"
    simulate("--policy", "default,fcfs", "--wall-times", str(file))
    runs = runs_of(file)
    assert [run["policy"] for run in runs] == ["default", "fcfs"]
    assert all(run["wall_s"] > 0 and run["iterations"] > 0 for run in runs)


def test_prefixes_are_cached_where_the_trace_names_them(simulate: Command, tmp_path: Path) -> None:
    trace, file = tmp_path / "named.jsonl", tmp_path / "out.json"
    row = {"input_length": 1100, "output_length": 4, "hash_ids": [1, 2, 3]}
    lines = [json.dumps({"timestamp": 5000 * number, **row}) for number in range(4)]
    trace.write_text("\n".join(lines))
    simulate("--json", str(file), trace=trace)
    (run,) = runs_of(file)
    assert run["settings"] == {
        "max_tokens": 4,
        "block_size": 16,
        "prefix_caching": True,
        "swap_gib": 0.25,
    }
    assert run["cached_prompt_share"] == pytest.approx(0.75 * 1088 / 1100, rel=1e-4)
    simulate("--json", str(file), "--no-prefix-caching", "--block-size", "32", trace=trace)
    (run,) = runs_of(file)
    assert (run["settings"]["block_size"], run["settings"]["prefix_caching"]) == (32, False)
    assert run["cached_prompt_share"] == 0


def test_long_prompts_that_share_get_larger_blocks(simulate: Command, tmp_path: Path) -> None:
    trace, file = tmp_path / "named.jsonl", tmp_path / "out.json"
    row = {"input_length": 40_000, "output_length": 4, "hash_ids": [1, 2]}
    lines = [json.dumps({"timestamp": 5000 * number, **row}) for number in range(3)]
    trace.write_text("\n".join(lines))
    _, _, err = simulate("--json", str(file), trace=trace)
    assert runs_of(file)[0]["settings"]["block_size"] == 64
    assert "note: KV blocks hold 64 tokens." in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--policy", "lifo"), "policy 'lifo' is unknown; use one of default"),
        (("--policy", ","), "--policy names none"),
        (("--cluster", "prefill:2"), "it needs a prefill and a decode worker"),
        (("--cluster", "1", "--policy", "distserve"), "separate workers need two"),
        (("--slo", "ttft=fast"), "--slo 'ttft=fast'"),
        (("--rate-scale", "0"), "--rate-scale: '0' is no number from 1e-09 to 1e+09"),
        (("--rate", "1,x"), "--rate: 'x' is no number"),
        (("--rate", "1,2", "--rate-scale", "1,2"), "both name several rates"),
        (("--rate", "1,2", "--search-goodput"), "starts at one rate"),
        (("--max-tokens", "0"), "'0' is no whole number from 1"),
        (("--block-size", "99999999"), "more than the KV of h200_llama8b_fp8"),
        (("--attainment", "1.5"), "'1.5' is no number"),
        (("--json", "no/such/folder.json"), "no/such is no folder; make it first"),
        (("--json", "/proc/x"), "--json: nothing can be written to /proc ("),
        (("--report", "/proc/x"), "--report: nothing can be written to /proc ("),
        (("--report", f"{__file__}/below"), "is a file, no folder"),
        (("--seed", "x"), "--seed"),
        (("--unknown",), "unrecognized arguments: --unknown"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    simulate: Command, options: tuple[str, ...], says: str
) -> None:
    code, out, err = simulate(*options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert says in err


def test_files_that_cannot_be_read_are_one_line_and_exit_code_1(
    simulate: Command, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(f"{_HEAD}\n0,ten,5\n")
    code, out, err = simulate(trace=bad)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "bad.csv, line 2: prompt_tokens is 'ten'" in err
    code, out, err = simulate(hardware="abacus")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "hardware abacus: no such name" in err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("simulate", "plan"):
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0
        assert f"tandem {name} --trace requests.csv" in capsys.readouterr().out
