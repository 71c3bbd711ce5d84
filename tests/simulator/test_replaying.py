"""A fresh core that is told the same wants the same, whatever happened, in any process."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.events import EmitFinished
from router.recording.entries import ENDED, TOO_SLOW, last_line
from router.recording.file import RecordingUnreadable
from router.recording.testing import opened, packed, setup_of
from scheduling.errors import CanNeverFit, NoWorkerAvailable, QueueFull
from scheduling.policies import POLICIES
from simulator.__main__ import main
from simulator.asks_testing import asks, deaths
from simulator.replay_testing import recorded_cluster
from simulator.replaying import Replayed, replay
from simulator.testing import Ask, asks_at_once, start

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
FLEETS = (
    ("prefill-0", "decode-0", "decode-1"),
    ("mixed-0", "mixed-1"),
    ("prefill-0", "decode-0", "mixed-0"),
)
LIVE_POLICIES = tuple(name for name, policy in POLICIES.items() if not policy.needs_foresight)

Edit = Callable[[list[dict[str, Any]]], None]


def recording_of(
    wanted: list[Ask],
    seed: int = 1,
    policy: str = "default",
    num_blocks: int = 24,
    fleet: tuple[str, ...] = FLEETS[2],
    dying: list[tuple[int, float]] | None = None,
) -> bytes:
    setup = setup_of(policy, max_backlog_tokens=24, max_retries_per_task=100, max_prompt_queue=6)
    cluster, core = recorded_cluster(seed, setup, num_blocks, fleet)
    cluster.restart_workers((fleet[n % len(fleet)], at_s) for n, at_s in dying or ())
    for number, ask in enumerate(wanted):
        cluster.at(ask.at_s, partial(start_if_taken, cluster, number, ask))
    cluster.run()
    return core.recording()


def start_if_taken(cluster: Any, number: int, ask: Ask) -> None:
    """A full queue refuses it; that is recorded as well."""
    with suppress(QueueFull, CanNeverFit, NoWorkerAvailable):
        start(cluster, number, ask)


def replayed(content: bytes) -> Replayed:
    return replay(opened(content), is_checking=True)


def edited(content: bytes, edit: Edit) -> bytes:
    """The file with its lines changed."""
    lines = [json.loads(line) for line in gzip.decompress(content).splitlines()]
    edit(lines)
    return packed(json.dumps(line).encode() + b"\n" for line in lines)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(asks(), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(LIVE_POLICIES),
    num_blocks=st.integers(10, 40),
    fleet=st.sampled_from(FLEETS),
    dying=st.just([]) | deaths(st.integers(0, 2)),
)
def test_the_same_events_give_the_same_actions(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    fleet: tuple[str, ...],
    dying: list[tuple[int, float]],
) -> None:
    content = recording_of(wanted, seed, policy, num_blocks, fleet, dying)
    recording = opened(content)
    found = replay(recording, is_checking=True)
    assert found.difference is None, found.difference and found.difference.line()
    assert found.num_requests == len(wanted)
    assert recording.end_reason == ENDED


@pytest.mark.parametrize("hash_seed", ["0", "1", "4711"])
def test_another_process_with_other_hashes_decides_the_same(tmp_path: Path, hash_seed: str) -> None:
    path = tmp_path / "some.jsonl.gz"
    fleet = (*(f"prefill-{n}" for n in range(3)), *(f"mixed-{n}" for n in range(5)))
    path.write_bytes(recording_of(asks_at_once(40), fleet=fleet, dying=[(1, 0.05), (4, 0.06)]))
    process = subprocess.run(
        [sys.executable, "-m", "simulator", "replay", str(path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.endswith("the same actions for every event\n")


def finished(lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Line number and action of the first end of an answer."""
    return next(
        (number, action)
        for number, line in enumerate(lines)
        for action in line.get("outcome", ())
        if action["is"] == EmitFinished.__name__
    )


def test_an_edited_outcome_is_found_and_named() -> None:
    numbers = []

    def edit(lines: list[dict[str, Any]]) -> None:
        number, action = finished(lines)
        action["num_output_tokens"] += 1
        numbers.append(number)

    found = replayed(edited(recording_of(asks_at_once(4)), edit))
    assert found.difference is not None
    assert found.difference.handled.number == numbers[0] == found.num_events
    recorded, came = found.difference.pair
    assert recorded["num_output_tokens"] == came["num_output_tokens"] + 1
    assert f"event {numbers[0]}, " in found.difference.line()
    assert "ReportsArrived of " in found.difference.line()


def test_an_edited_event_is_found_where_it_first_changes_a_decision() -> None:
    def edit(lines: list[dict[str, Any]]) -> None:
        line = next(line for line in lines if line.get("event", {}).get("is") == "RequestArrived")
        line["event"]["spec"]["stop"]["max_tokens"] = 1

    found = replayed(edited(recording_of([Ask((1, 2, 3), 9, 1, 0.0, None, None, 0)]), edit))
    assert found.difference is not None
    recorded, came = found.difference.pair
    assert recorded != came


def test_a_missing_action_and_one_too_many_are_named() -> None:
    def drop(lines: list[dict[str, Any]]) -> None:
        number, action = finished(lines)
        lines[number]["outcome"].remove(action)

    def double(lines: list[dict[str, Any]]) -> None:
        number, _ = finished(lines)
        lines[number]["outcome"].append({"is": "WakeAt", "at_s": 1.5})

    content = recording_of(asks_at_once(3))
    dropped, doubled = replayed(edited(content, drop)), replayed(edited(content, double))
    assert dropped.difference is not None
    assert doubled.difference is not None
    assert doubled.difference.pair == ({"is": "WakeAt", "at_s": 1.5}, "nothing")
    assert dropped.difference.pair[1]["is"] == "EmitFinished"


def test_a_missing_event_is_named_by_its_number() -> None:
    def drop(lines: list[dict[str, Any]]) -> None:
        del lines[5]

    with pytest.raises(RecordingUnreadable, match="line 6: event 5 is due here and 6 stands"):
        replayed(edited(recording_of(asks_at_once(3)), drop))


@pytest.mark.parametrize("policy", ["lifo", "default+memory=endless"])
def test_the_core_of_a_policy_that_is_not_there_is_told_of(policy: str) -> None:
    def rename(lines: list[dict[str, Any]]) -> None:
        lines[0]["policy"] = policy

    problem = re.escape(f"line 1: this version has no policy {policy!r}")
    with pytest.raises(RecordingUnreadable, match=problem):
        replayed(edited(recording_of(asks_at_once(1)), rename))


def test_a_recording_knows_what_was_changed_of_the_policy() -> None:
    changed = "fcfs+ordering=deadline+allocation=exact"
    content = recording_of(asks_at_once(8), policy=changed)
    assert replay(opened(content), is_checking=True).difference is None

    def forget(lines: list[dict[str, Any]]) -> None:
        lines[0]["policy"] = "fcfs"

    assert replayed(edited(content, forget)).difference is not None


# --- the command ------------------------------------------------------------------------------


def test_the_command_says_that_all_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(recording_of(asks_at_once(4)))
    assert main(["replay", str(path), "--check", "--show", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert '"event": 3' in out
    assert "4 requests\nthe same actions for every event\n" in out
    assert main(["replay", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["is_same"], told["end"], told["num_requests"]) == (True, "ended", 4)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_event_that_is_not_there_is_told_and_spoils_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(recording_of(asks_at_once(1)))
    assert main(["replay", str(path), "--json"]) == 0
    num_events = json.loads(capsys.readouterr().out)["num_events"]
    assert main(["replay", str(path), "--show", str(num_events), *options]) == 0
    assert capsys.readouterr().err == ""
    assert main(["replay", str(path), "--show", str(num_events + 1), *options]) == 0
    out, err = capsys.readouterr()
    last = f"give --show a number from 1 to {num_events}"
    assert err == f"note: there is no event {num_events + 1}; {last}\n"
    assert "same" in out


def test_an_event_behind_the_first_difference_is_not_reached_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl.gz"

    def edit(lines: list[dict[str, Any]]) -> None:
        finished(lines)[1]["index"] = 7

    path.write_bytes(edited(recording_of(asks_at_once(1)), edit))
    assert main(["replay", str(path), "--show", "9999"]) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"note: event 9999 was not reached: the replay ends at event \d+, which differs\n", err
    )


def test_the_command_says_where_a_killed_router_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl.gz"
    content = recording_of(asks_at_once(4))
    path.write_bytes(content[: len(content) * 2 // 3])
    assert main(["replay", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "the same actions for every event\nthe recording breaks off here: its router was" in out


def test_the_command_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(lines: list[dict[str, Any]]) -> None:
        finished(lines)[1]["index"] = 7

    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(edited(recording_of(asks_at_once(4)), edit))
    assert main(["replay", str(path)]) == 1
    out, _ = capsys.readouterr()
    assert " s after the first one, ReportsArrived of " in out
    assert '\nrecorded: {"is": "EmitFinished", ' in out
    assert '\nnow:      {"is": "EmitFinished", ' in out
    assert main(["replay", "--json", str(path)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["difference"]["recorded"]["index"] == 7


def test_the_command_says_what_is_wrong_with_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.csv"
    path.write_text("arrival_s,prompt_tokens\n")
    assert main(["replay", str(path)]) == 1
    assert main(["replay", str(tmp_path / "nowhere")]) == 1
    assert main(["replay"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 3)
    assert "some.csv: this is no gzip file, so no recording of a router; give a file" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            packed([last_line(ENDED)], setup_of()),
            "nothing was recorded: router-0 ended before it was told anything; record a router",
        ),
        (
            packed([last_line(TOO_SLOW)], setup_of()),
            "nothing was recorded: the recording ends here: more happened than could be written",
        ),
        (packed([], setup_of()), "nothing was recorded: the recording breaks off here: its router"),
        (b"", "the file is empty; "),
        (packed([], setup_of())[:40], "it breaks off within its first line; "),
        (gzip.compress(b"a,b\n1,2\n"), "line 1: this is no recording of a router; give a file"),
    ],
    ids=["no event", "too slow", "killed", "empty file", "cut off", "another file"],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_where_there_is_nothing_to_compare_one_line_says_so_and_nothing_is_called_the_same(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    told: str,
    options: tuple[str, ...],
) -> None:
    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(content)
    assert main(["replay", str(path), *options]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err


def test_a_recording_of_another_version_is_to_be_replayed_with_that_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def format_of_tomorrow(lines: list[dict[str, Any]]) -> None:
        lines[0] |= {"version": 9, "product": "9.9.0"}

    def policy_of_tomorrow(lines: list[dict[str, Any]]) -> None:
        lines[0] |= {"policy": "lifo", "product": "9.9.0"}

    path, content = tmp_path / "some.jsonl.gz", recording_of(asks_at_once(1))
    for edit, problem in (
        (format_of_tomorrow, "it has version 9 of the format, this Tandem reads version 1"),
        (policy_of_tomorrow, "this version has no policy 'lifo'"),
    ):
        path.write_bytes(edited(content, edit))
        assert main(["replay", str(path)]) == 1
        _, err = capsys.readouterr()
        assert err == f"error: {path}, line 1: {problem}; replay it with Tandem 9.9.0\n"
