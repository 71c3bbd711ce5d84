"""The trace file loads, and what happens inside something else lies inside it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from simulator.metrics.testing import InventedRun
from simulator.metrics.trace_log import TraceLog
from simulator.report.chrome_trace import chrome_trace, write_chrome_trace


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """Of a run of which the end is dropped."""
    log = TraceLog(max_requests=20, max_iterations=300)
    InventedRun(num_requests=60, trace_log=log).result()
    loaded: dict[str, Any] = json.loads(chrome_trace(log))
    return loaded


def spans_by_track(content: dict[str, Any]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found = defaultdict(list)
    for event in content["traceEvents"]:
        if event["ph"] == "X":
            found[event["pid"], event["tid"]].append(event)
    return found


def test_every_event_has_what_the_viewers_need(content: dict[str, Any]) -> None:
    for event in content["traceEvents"]:
        assert event["ph"] in ("X", "M", "C", "i")
        assert isinstance(event["pid"], int)
        if event["ph"] != "M":
            assert isinstance(event["ts"], int)
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert isinstance(event["dur"], int)
            assert event["dur"] >= 0


def test_every_track_has_a_name(content: dict[str, Any]) -> None:
    named = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in content["traceEvents"]
        if event["name"] == "thread_name"
    }
    assert named.keys() == spans_by_track(content).keys()
    assert {"prefill-0", "decode-0", "request 0"} <= set(named.values())


def test_spans_of_one_track_nest_or_follow_each_other(content: dict[str, Any]) -> None:
    for spans in spans_by_track(content).values():
        ends: list[int] = []
        for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
            end = span["ts"] + span["dur"]
            while ends and ends[-1] <= span["ts"]:
                ends.pop()
            assert not ends or end <= ends[-1]
            ends.append(end)


def test_a_request_has_its_phases_inside_it(content: dict[str, Any]) -> None:
    requests = {track: spans for track, spans in spans_by_track(content).items() if track[0] == 2}
    assert len(requests) == 20
    for whole, *phases in requests.values():
        assert [phase["name"] for phase in phases] == ["prompt_queued", "prefilling", "decoding"]
        assert sum(phase["dur"] for phase in phases) == whole["dur"]


def test_the_trace_is_bounded_and_says_so(content: dict[str, Any]) -> None:
    iterations = sum(len(s) for (pid, _), s in spans_by_track(content).items() if pid == 1)
    assert iterations == 300
    assert content["otherData"]["dropped_iterations"] > 0
    assert content["otherData"]["max_requests"] == 20


def test_an_empty_run_has_a_trace_as_well(tmp_path: Path) -> None:
    write_chrome_trace(tmp_path / "trace.json", TraceLog())
    assert json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
