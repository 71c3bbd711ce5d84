import argparse
import gzip
import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scheduling.cell_log import read_entries
from benchmarks.scheduling.cells import TRACES
from benchmarks.scheduling.measuring import Subject
from benchmarks.scheduling.sweep import Sweep, add_options, pairs_asked, run_sweep
from scheduling.policies import POLICIES

SUBJECTS = [Subject(name, POLICIES[name]) for name in ("sarathi", "default")]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    rng = random.Random(3)
    rows = [f"{number * 0.5},{rng.randint(50, 900)},{rng.randint(2, 20)}" for number in range(90)]
    text = "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n"
    for trace in TRACES[:1]:
        with gzip.open(tmp_path / trace.name, "wt", encoding="utf-8") as file:
            file.write(text)
    return tmp_path


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, "cells.jsonl")
    return parser.parse_args(words)


def swept(traces: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    asked = options("--traces", str(traces), "--out", str(out), "--quick", *words)
    Sweep(asked).run(pairs_asked(asked), SUBJECTS)
    return [dict(entry) for entry in read_entries(out)]


def test_the_reference_comes_first_and_only_what_is_missing_is_measured(traces: Path) -> None:
    out = traces / "cells.jsonl"
    first = swept(traces, out, "--pairs", "azure/a100")
    assert [entry["policy"] for entry in first] == ["fcfs", "sarathi", "default"]
    text = out.read_text()
    assert swept(traces, out, "--pairs", "azure/a100") == first
    assert out.read_text() == text
    # Stopped while it wrote the last.
    lines = text.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1] + lines[2][:40])
    again = swept(traces, out, "--pairs", "azure/a100")
    assert [without_cpu(entry) for entry in again] == [without_cpu(entry) for entry in first]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(traces: Path) -> None:
    one = swept(traces, traces / "one.jsonl", "--pairs", "azure/a100")
    two = swept(traces, traces / "two.jsonl", "--pairs", "azure/a100", "--jobs", "2")
    assert two[0]["policy"] == "fcfs"
    assert sorted(map(without_cpu, one)) == sorted(map(without_cpu, two))


def without_cpu(entry: dict[str, Any]) -> str:
    common = {k: v for k, v in entry["common"].items() if k != "cpu_us_per_request"}
    return json.dumps({**entry, "common": common}, sort_keys=True)


def test_once_the_time_is_over_no_cell_is_begun(traces: Path) -> None:
    assert swept(traces, traces / "none.jsonl", "--minutes", "0") == []


def test_pairs_are_asked_for_by_the_beginning_of_their_names() -> None:
    asked = pairs_asked(options("--traces", ".", "--pairs", "rag/h1,azure/a"))
    names = [(pair.trace.stem, pair.hardware) for pair in asked]
    assert names == [
        ("rag_campus_days1_5", "h100_llama70b_tp4"),
        ("azure_2023_conv", "a100_opt13b"),
    ]
    with pytest.raises(ValueError, match="names nothing"):
        pairs_asked(options("--traces", ".", "--pairs", "nobody/a100"))


@pytest.mark.parametrize("share", ["0", "-1", "1.5"])
def test_a_share_of_memory_that_cannot_be_is_refused(share: str) -> None:
    with pytest.raises(SystemExit):
        options("--traces", ".", "--kv-share", share)


def test_cells_by_published_goals_say_so_and_what_nobody_could_meet(
    traces: Path, tmp_path: Path
) -> None:
    pair = ("--pairs", "azure/a100")
    own = swept(traces, tmp_path / "own.jsonl", *pair)
    published = swept(traces, tmp_path / "published.jsonl", *pair, "--slo", "published")

    assert [entry["settings"].get("slo") for entry in own] == [None] * len(own)
    assert {entry["settings"]["slo"] for entry in published} == {"published"}
    assert all(0 <= entry["hopeless_share"] <= 1 for entry in own + published)
    assert [entry["policy"] for entry in published] == [entry["policy"] for entry in own]


def told_of(
    traces: Path, capsys: pytest.CaptureFixture[str], *words: str, pair: str = "azure/a100"
) -> str:
    """The line on stderr of a sweep that ends with exit code 2."""
    out = str(traces / "wrong.jsonl")
    asked = options("--traces", str(traces), "--out", out, "--quick", "--pairs", pair, *words)
    assert run_sweep(asked, SUBJECTS) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_goals_that_say_nothing_end_a_sweep_with_one_line(
    traces: Path, capsys: pytest.CaptureFixture[str], jobs: str
) -> None:
    told = told_of(traces, capsys, "--slo", "nonsense", "--jobs", jobs)
    assert told.startswith("error: --slo 'nonsense': ")
    assert "write for example" in told or "the goals are" in told


def test_a_trace_that_is_not_there_and_a_pair_without_a_name_end_it_with_one_line(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "lengths_sharegpt" in told_of(traces, capsys, pair="lengths_sharegpt/a100")
    assert "names nothing" in told_of(traces, capsys, pair="nobody/a100")


def test_a_file_that_was_begun_with_other_options_ends_it_with_one_line(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (traces / "wrong.jsonl").write_text(
        '{"trace": "t", "hardware": "h", "policy": "p", "settings": {"seed": 3, "quick": true}}\n'
    )
    assert "give another --out" in told_of(traces, capsys)


def test_a_sweep_in_several_processes_leaves_signals_as_they_were(
    traces: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    swept(traces, tmp_path / "out.jsonl", "--pairs", "azure/a100", "--jobs", "2")
    assert signal.getsignal(signal.SIGTERM) is before
