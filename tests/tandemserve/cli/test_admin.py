"""`tandem admin`: what operators type and what they get, against the fake router."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from tandemserve import Client
from tandemserve.api.v1 import admin_pb2
from tandemserve.cli.admin_workers import pass_time_rows
from tandemserve.cli.main import app
from tandemserve.cli.watch import show_until_interrupted
from tandemserve.testing import Fail, FakeInferenceServer

Tandem = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[FakeInferenceServer]:
    with FakeInferenceServer() as fake:
        yield fake


@pytest.fixture
def tandem(server: FakeInferenceServer) -> Tandem:
    """Runs `tandem admin ARGUMENTS` with the fake router as its target."""

    def run(*arguments: str) -> Result:
        environment = {"TANDEM_TARGET": server.target, "TANDEM_TOKEN": "", "COLUMNS": "80"}
        return CliRunner(env=environment).invoke(app, ("admin", *arguments))

    return run


def last(server: FakeInferenceServer, kind: Any) -> Any:
    return next(request for request in reversed(server.requests) if isinstance(request, kind))


@pytest.mark.parametrize(
    "arguments",
    [["requests"], ["request", "r1"], ["workers"], ["queues"], ["reservations"], ["status"]],
)
def test_every_view_fits_into_eighty_columns(tandem: Tandem, arguments: list[str]) -> None:
    result = tandem(*arguments)
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_requests_are_listed_with_what_they_wait_for(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    result = tandem(
        "requests", "--running", "--class", "batch", "--tenant", "acme", "--phase", "decoding",
        "--worker", "decode-0", "--limit", "7",
    )  # fmt: skip
    wanted = last(server, admin_pb2.ListRequestsRequest)
    assert wanted == admin_pb2.ListRequestsRequest(
        state="running", request_class="batch", tenant="acme", phase="decoding",
        worker_id="decode-0", max_requests=7,
    )  # fmt: skip
    for expected in ("Requests (1 running, 2 ended)", "r1", "12/64", "prefill-0 > decode-0"):
        assert expected in result.stdout
    assert result.stderr == "2 more match; raise --limit, or filter\n"
    (found,) = map(json.loads, tandem("requests", "--json").stdout.splitlines())
    assert found["requests"][0]["answers"][0]["num_migrations"] == 1
    assert found["requests"][0]["ended_ago_s"] is None


def test_one_request_is_a_chart(tandem: Tandem) -> None:
    result = tandem("request", "r1")
    assert result.exit_code == 0
    assert result.stdout.startswith("request r1: running\n")
    assert "answer 0: 12 tokens, try 2, 0 preemptions, 1 migration" in result.stdout
    assert "####" in result.stdout
    (found,) = map(json.loads, tandem("request", "r1", "--json").stdout.splitlines())
    assert found["timelines"][0]["events"][1]["phase"] == "prefilling"


def test_cancel_says_what_became_of_each(tandem: Tandem, server: FakeInferenceServer) -> None:
    result = tandem("cancel", "r1", "r2", "--reason", "too loud", "--as", "eve")
    assert result.stdout == "r1 cancelled\nr2 had ended before (finished)\n"
    request = last(server, admin_pb2.CancelRequestsRequest)
    assert (request.operator, request.reason) == ("eve", "too loud")
    tandem("cancel", "r1")
    assert last(server, admin_pb2.CancelRequestsRequest).operator


@pytest.mark.parametrize(("command", "admission"), [("cordon", "cordoned"), ("uncordon", "open")])
def test_cordon_and_uncordon(
    tandem: Tandem, server: FakeInferenceServer, command: str, admission: str
) -> None:
    result = tandem(command, "decode-0")
    assert result.stdout == f"decode-0 is {admission}; it has 2 tasks\n"
    request = last(server, admin_pb2.SetWorkerAdmissionRequest)
    assert (request.worker_id, request.admission, request.force) == ("decode-0", admission, False)


def test_a_drain_tells_how_far_it_is_and_ends_when_the_worker_is_empty(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    result = tandem("drain", "decode-0", "--migrate", "--force")
    assert (result.exit_code, result.stdout) == (
        0,
        "decode-0 is empty; stop it, or `tandem admin uncordon decode-0`\n",
    )
    told = [line.rpartition(",")[0] for line in result.stderr.splitlines()]
    assert told == [f"decode-0: {n} left, 0 running" for n in ("2 tasks", "1 task", "0 tasks")]
    asked = [
        (request.admission, request.force)
        for request in server.requests
        if isinstance(request, admin_pb2.SetWorkerAdmissionRequest)
    ]
    # Empty, it is cordoned like any other.
    assert asked == [("evacuating", True), ("cordoned", True)]


def test_a_drain_that_takes_too_long_is_exit_code_1(tandem: Tandem) -> None:
    result = tandem("drain", "decode-0", "--drain-timeout", "0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error [deadline_exceeded]: decode-0 still has 2 tasks after " in result.stderr


def test_the_refusals_of_the_router_are_one_line_and_exit_code_1(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    server.failures.append(Fail(grpc.StatusCode.NOT_FOUND, "no such; look", code="unknown_name"))
    result = tandem("request", "nobody")
    assert (result.exit_code, result.stderr) == (1, "error [unknown_name]: no such; look\n")
    refusal = Fail(grpc.StatusCode.FAILED_PRECONDITION, "the last; insist", code="last_worker")
    server.failures.append(refusal)
    result = tandem("drain", "decode-0")
    assert (result.exit_code, result.stderr) == (1, "error [last_worker]: the last; insist\n")


def test_a_worker_that_decides_by_another_policy_is_shown_with_it(tandem: Tandem) -> None:
    assert "fcfs" in tandem("workers").stdout
    status = tandem("status")
    assert "num_workers_of_other_policy" in status.stdout
    assert "workers that decide by another policy than default: 1" in status.stderr


def test_a_worker_whose_model_is_divided_is_shown_with_its_ranks(tandem: Tandem) -> None:
    assert "Ranks" in tandem("workers").stdout
    (found,) = map(json.loads, tandem("workers", "--json").stdout.splitlines())
    assert found[0]["num_ranks"] == 2


def test_workers_are_shown_with_the_error_of_their_models(tandem: Tandem) -> None:
    shown = tandem("workers").stdout
    assert "Models of pass times" in shown
    for expected in ("640", "3.1%", "12.0%"):
        assert expected in shown
    (found,) = map(json.loads, tandem("workers", "--json").stdout.splitlines())
    assert (found[0]["num_timed_passes"], found[0]["pass_error_p90"]) == (640, 0.12)


@pytest.mark.parametrize(
    ("num_passes", "shown"),
    [
        (1, [None, None]),
        (63, [None, None]),
        (64, ["3.1%", None]),
        (255, ["3.1%", None]),
        (256, ["3.1%", "12.0%"]),
    ],
)
def test_a_worker_that_has_computed_little_is_not_judged_by_its_first_guesses(
    server: FakeInferenceServer, num_passes: int, shown: list[str | None]
) -> None:
    with Client(server.target) as client:
        (view, *_) = client.admin.workers()
    (row,) = pass_time_rows([replace(view, num_timed_passes=num_passes)])
    assert row == ["decode-0", num_passes, *shown]


def test_status_shows_what_became_of_predicted_lengths(tandem: Tandem) -> None:
    shown = tandem("status").stdout
    for expected in ("Predicted lengths", "(all)", "acme", "90%", "21.5", "1.75"):
        assert expected in shown
    (found,) = map(json.loads, tandem("status", "--json").stdout.splitlines())
    assert [one["tenant"] for one in found["length_calibration"]] == ["", "acme"]
    assert found["length_calibration"][1]["covered_share"] == 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        ["requests", "--running", "--ended"],
        ["requests", "--limit", "0"],
        ["requests", "--class", "urgent"],
        ["requests", "--watch", "0"],
        ["request"],
        ["cancel"],
        ["drain"],
        ["drain", "decode-0", "--drain-timeout", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    tandem: Tandem, server: FakeInferenceServer, arguments: list[str]
) -> None:
    result = tandem(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert server.requests == []


@pytest.mark.parametrize(
    "command", ["requests", "request", "cancel", "workers", "cordon", "uncordon", "drain"]
)
def test_help_has_examples(tandem: Tandem, command: str) -> None:
    result = tandem(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"tandem admin {command}" in result.stdout


def test_a_watch_shows_again_and_again_until_interrupted() -> None:
    shown: list[int] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_until_interrupted(lambda: shown.append(1), 2.0, sleep)
    assert (len(shown), slept) == (3, [2.0, 2.0, 2.0])
    show_until_interrupted(lambda: shown.append(1), None, sleep)
    assert len(shown) == 4
